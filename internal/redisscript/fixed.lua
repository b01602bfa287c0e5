-- The fast path for takes under one fixed window, the most common limit, or one
-- period of a calendar. The counter is a number of units in a key that expires
-- when the window or the period ends, so an INCRBY is enough for most takes.
--
-- This path decides only the usual takes. It leaves all others to the general
-- path, so that a rare case is handled in one place, and costs a usual take no
-- more than a comparison.
--
-- The second file of Take: take_begin.lua lists the files and the reply.
--
--   KEYS   for each take: its counter
--   ARGV   f, N, window, or p, N, four instants, or with F or P the ladder, too;
--          the rest of what take_begin.lua lists
--
-- Expects the locals of take_begin.lua. If all takes are decided, it returns
-- the reply. Otherwise it leaves now, undecided, reply and replyLength to
-- take.lua. For an undecided take i, reply[2*i] is the PTTL of its key.
--
-- Checked against internal/rule by TestScriptsFollowTheRules and FuzzScripts:
-- they run random histories on a clock of their own, here and in the rule.
-- TestScriptsEdges does the same close to the end of a window. On the server's
-- clock, TestTakeFixed and TestTakeManyFixed list the takes that are left to
-- the general path, TestTakeRefused has a server that refuses commands, and
-- TestDenialsChangeNothing shows that a denial writes nothing.
--
-- This file and state.lua have the same shape, and use the same lines to do the
-- same thing. They are two loops because one loop that calls a function for
-- each take made Take 4 to 9 % slower.

if oneLimit and (kind == 'f' or kind == 'p') then
  local tonumber = tonumber -- a local is faster than a global
  local n, w = ARGV[2] + 0, ARGV[3] + 0

  -- All reads come before the first write: a script cannot undo a write, and if
  -- the server refuses a read, nothing must have been counted.
  --
  -- PTTL comes before TIME because time passes within a script, before Redis
  -- 7.2. In this order, a window seems to end later than it does, by that time.
  -- In the other order it would seem to end earlier, and a client that comes
  -- back at that end would be denied again.
  --
  -- MGET returns false both for a missing key and for a key that is not a
  -- string. They differ in PTTL, which is -2 only for a missing key.
  reply = {0, 0, 0} -- the usual length, so that the table need not grow
  local counts = fetched or call('MGET', unpack(keys))
  for i = 1, #keys do reply[2 * i] = call('PTTL', keys[i]) end
  local time = call('TIME')
  now = time[1] * 1000000 + time[2]
  reply[1], replyLength = now, 1 + 2 * #keys

  local millisecond = now - now % 1000 -- when the present millisecond began
  -- In ms. If a window lasts for longer, the clock was set back.
  local minLife, maxLife = 1, 2 * w / 1000
  local newT, newEnd -- of the windows that open now; nil until one does
  local periodEnd
  if kind == 'p' then
    local arg = 3
    if now < w or now >= ARGV[6] + 0 then
      return redis.error_reply('CLOCK ' .. string.format('%.0f', now))
    end
    while now >= ARGV[arg + 1] + 0 do arg = arg + 1 end
    periodEnd = ARGV[arg + 1] + 0
    newT, newEnd = periodEnd, string.format('%.0f', periodEnd / 1000)
    -- The key of this period has as much time left as the period. See decode in
    -- lib.lua.
    local left = (periodEnd - millisecond) / 1000
    minLife, maxLife = math.max(1, left - 2), left + 2
  end

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
      local count, life = counts[i], reply[2 * i]
      -- Not usual: a look, and more units than even a new window admits.
      if asked == 0 or asked > n then break end

      if life == -2 then
        -- The key is missing: the units open a window. It ends when its key
        -- does, on a whole millisecond: see newWindowT in lib.lua. -x % 1000 is
        -- (-x) % 1000, and never negative in Lua: what x lacks to the next one.
        if not newT then
          newT = now + -(now + w) % 1000
          newEnd = string.format('%.0f', (newT + w) / 1000)
        end
        local units = asked
        if units == 1 then units = '1' end -- Redis is slow to format a number
        call('SET', keys[i], units, 'PXAT', newEnd)
        reply[2 * i], reply[2 * i + 1] = newT, 0

      elseif count and life >= minLife and life <= maxLife then
        -- The window is open, and the counter has no block: its value would not
        -- be a number.
        local a = tonumber(count) or 0
        if a <= 0 or a >= 1e15 then break end
        local left, granted = n - a, asked
        if asked > left then
          if startsBlocks then break end
          admitted = 0
          if left > 0 then admitted = (left - left % cost) / cost end
          granted = cost * admitted
        end
        if granted > 0 then
          -- INCRBY keeps the time to live, and so the window's end. It returns
          -- the sum, or an error if the server refuses the write, or if count
          -- is a text like "1e3" or "007", which only tonumber accepts. The
          -- general path finds out which, and what to do.
          local units = granted
          if units == 1 then units = '1' end
          if try('INCRBY', keys[i], units) ~= a + granted then break end
        elseif not string.find(count, '^[1-9]%d*$') then
          break -- INCRBY would have refused it
        end
        reply[2 * i], reply[2 * i + 1] = periodEnd or millisecond + life * 1000 - w, a

      else
        break -- not a string, or its time to live is missing, over or too long
      end
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
