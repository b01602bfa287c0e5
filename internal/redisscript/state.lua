-- The fast path for takes under one sliding window or one bucket. Its counter
-- is a text of three numbers, "T A B", the fields of a rule.State.
--
-- This path decides only the usual takes. It leaves all others to the general
-- path, so that a rare case is handled in one place, and costs a usual take no
-- more than a comparison. In a usual take, the clock has not been set back
-- since the counter was written, and all products are less than 2^53, and so
-- exact.
--
-- The third file of Take: take_begin.lua lists the files and the reply.
--
--   KEYS   for each take: its counter
--   ARGV   s, N, window, or b, N, window, burst;
--          or S or B, the same, and a ladder;
--          the rest of what take_begin.lua lists
--
-- Expects the locals of take_begin.lua. If all takes are decided, it returns
-- the reply. Otherwise it leaves now, undecided, reply and replyLength to
-- take.lua. The state of an undecided take is not in the reply yet.
--
-- Checked against internal/rule by TestScriptsFollowTheRules and FuzzScripts:
-- they run random histories on a clock of their own, here and in the rule.
-- TestScriptsRounding does the same for the ends of keys and for products of
-- 2^53 or more, TestScriptsEdges close to the end of a window. On the server's
-- clock, TestTakeManyStates lists the takes that are left to the general path,
-- TestTakeRefused has a server that refuses commands, and
-- TestDenialsChangeNothing shows that a denial writes nothing.
--
-- This file and fixed.lua have the same shape, and use the same lines to do the
-- same thing. The arithmetic is what the functions at, older and resetAt of
-- lib.lua do for usual takes. It is written out here because calls take longer.

if oneLimit and (kind == 's' or kind == 'b') then
  -- Locals are faster than globals.
  local match, format = string.match, string.format
  local n, w, burst = ARGV[2] + 0, ARGV[3] + 0, 0
  local bucket = kind == 'b'
  if bucket then burst = ARGV[4] + 0 end

  -- %d is the fastest format for a number, but a 32-bit server cannot write the
  -- largest ones with it: see lib.lua.
  local exact = 9007199254740992 -- 2^53: integers below it are exact
  local intFormat, stateFormat = '%d', '%d %d %d'
  if format(intFormat, exact) ~= '9007199254740992' then
    intFormat, stateFormat = '%.0f', '%.0f %.0f %.0f'
  end

  -- One MGET takes less time than a GET for each key: Take of 32 keys is 7 %
  -- faster. It returns false both for a missing key and for a key that is not a
  -- string. They need no further call: SET with NX does not replace a key, and
  -- PTTL is -2 only for a missing one.
  reply = {0, 0, 0, 0} -- the usual length, so that the table need not grow
  local values = fetched or call('MGET', unpack(keys))
  local time = call('TIME')
  now = time[1] * 1000000 + time[2]
  reply[1], replyLength = now, 1 + 3 * #keys

  local specialArg = afterFirstLimit -- the index of the next special take
  local special = (following or 0) + 0 -- its number; 0 if there is none
  for i = 1, #keys do
    local cost, callers = 1, 1
    if i == special then
      cost, callers = ARGV[specialArg + 1] + 0, ARGV[specialArg + 2] + 0
      specialArg = specialArg + 3
      special = (ARGV[specialArg] or 0) + 0
    end
    local asked, admitted = cost * callers, callers

    -- This block runs once. A break leaves it with the take undecided. No break
    -- follows a successful write.
    local decided = false
    repeat
      -- 1. Read the state. Not usual: another text, such as one with a block, and a
      -- clock that was set back.
      local value = values[i]
      local t, a, b = now, 0, 0
      if value then
        t, a, b = match(value, '^(%d+) (%d+) (%d+)$')
        if not t or #t > 16 or #a > 15 or #b > 16 then break end
        t, a, b = t + 0, a + 0, b + 0
        if t > now or b > exact then break end
      end

      -- 2. Bring it forward to now, and find the units that are left.
      local left
      if bucket then
        local leaked = n * (now - t) -- in w-ths of a unit
        if leaked >= exact then break end
        local part = leaked % w
        t, a, b = now, a - (leaked - part) / w, b - part
        if b < 0 then a, b = a - 1, b + w end
        if a < 0 then a, b = 0, 0 end
        left = burst - a
        if b > 0 then left = left - 1 end -- a unit that has begun to leak
      else
        local elapsed = now - t
        if elapsed >= w then
          -- The window has ended, and is the older one of the next window. Not
          -- in one assignment: gopher-lua would set a before it reads it for b.
          b = a
          t, a, elapsed = t + w, 0, elapsed - w
        end
        local weighted = 0 -- in w-ths of a unit
        if elapsed < w then weighted = b * (w - elapsed) end
        if weighted >= exact then break end
        local older = (weighted - weighted % w) / w
        if a == 0 and older == 0 then t, b = now, 0 end -- a fresh state
        left = n - a - older
      end

      -- 3. Find how many callers fit. All do if they only look.
      local granted = asked
      if cost > 0 and asked > left then
        if startsBlocks then break end
        admitted = 0
        if left > 0 then admitted = (left - left % cost) / cost end
        granted = cost * admitted
      end

      -- 4. Write the state with the admitted units. The key expires when the
      -- state counts as a fresh one, rounded up to a millisecond: -x % 1000 is
      -- (-x) % 1000, and never negative in Lua.
      if granted > 0 then
        local total, resetAt = a + granted, 0
        if bucket then
          local filled = total * w + b -- in w-ths of a unit
          if filled >= exact then break end
          local remainder = filled % n -- now + ceildiv(filled, n)
          resetAt = now + (filled - remainder) / n
          if remainder > 0 then resetAt = resetAt + 1 end
        else
          local remainder = w % total -- t + w + w - ceildiv(w, total) + 1
          resetAt = t + w + w - (w - remainder) / total + 1
          if remainder > 0 then resetAt = resetAt - 1 end
        end
        -- If the key exists and is not a string, SET with NX returns false and
        -- writes nothing. XX is true of each key that MGET has read. It is here
        -- so that one call is for both cases.
        if not call('SET', keys[i], format(stateFormat, t, total, b), 'PXAT',
            format(intFormat, (resetAt + -resetAt % 1000) / 1000),
            value and 'XX' or 'NX') then
          break
        end
      else
        local life = call('PTTL', keys[i])
        if life == -1 then break end -- the general path sets a time to live
        if not value and life ~= -2 then break end -- not a string
      end
      reply[3 * i - 1], reply[3 * i], reply[3 * i + 1] = t, a, b
      decided = true
    until true

    if not decided then
      undecided = undecided or {}
      undecided[#undecided + 1] = i
    elseif admitted < callers then
      reply[replyLength + 1], reply[replyLength + 2] = i, admitted
      replyLength = replyLength + 2
    end
  end
  if not undecided then return reply end
end
