-- The limits in ARGV, reading and writing counters, and the arithmetic of
-- internal/rule: what Take, Adjust and Block share. Logs of rolling windows are in
-- rolling.lua.
--
-- The fourth file of Take, after the fast paths: take_begin.lua lists the files. The first file of Adjust and of Block.
--
--   KEYS   for each key: a counter for each limit
--   ARGV   for each limit: kind (f, s, b or r), N, window, and burst if it is a b;
--            or kind p, for a period of a calendar, N, and four instants: where
--            the period before the present one began, where the present one
--            did, where it ends, and where the next one ends;
--            or the kind as a capital letter, the same, and the ladder: the
--            durations of its blocks, with spaces between them
--          then the script's own arguments, of which the first is a number
--   reply  is up to the file that follows
--
-- Expects no locals. Leaves to the files after it:
--
--   limitCount, kinds, N, windows, bursts   the limits, numbered from 1; of a p,
--                                           window is the length of the present
--                                           period, and burst its end
--   rolling                                 true if a limit is a rolling window
--   ladders                                 their ladders; nil if none has one
--   ownArg                                  the index of the first own argument
--   readCounter, readAll, decode, write     functions for counters
--   setPeriods
--   fresh, older, drain, at, newWindowT,    functions for states
--   left
--
-- A function that internal/rule has too has the same name here, and is
-- explained there. Parameters kind, n, w and burst are the fields of a
-- rule.Limit, and t, a and b the fields of a rule.State. If the limit is a rolling
-- window, t is the instant of the youngest unit, a the number of units, and b the
-- log: a string, or 0 if there are no units. Parameter block is a
-- table with the fields of a rule.Block, or nil: ends (Until), rung and forget.
-- It also has lasts, the whole duration of the block.
--
-- Checked against internal/rule by TestScriptsFollowTheRules and FuzzScripts:
-- they run random histories on a clock of their own, here and in the rule, up
-- to the largest numbers. TestScriptsRounding does the same for the ends of
-- keys and for the products that muldiv takes in parts.
--
-- Instants and spans are in microseconds. Lua's numbers are doubles, which hold
-- all integers below 2^53. Units are less than 2^50, and instants and spans
-- less than 2^51. So sums are exact. Products can be too large: muldiv is for
-- them.

-- Formats for the numbers in values and arguments. %d is the fastest way to
-- write a number, but on a 32-bit server it cannot write the largest ones, and
-- then %.0f is used. A number that is an argument itself is formatted by Redis,
-- with 17 digits, which is slower than both.
local exact = 9007199254740992 -- 2^53: integers up to it are exact
local intFormat, stateFormat = '%d', '%d %d %d'
if string.format(intFormat, exact) ~= '9007199254740992' then
  intFormat, stateFormat = '%.0f', '%.0f %.0f %.0f'
end

local limitCount, kinds, N, windows, bursts = 0, {}, {}, {}, {}
local ladders, periods -- periods: by limit, the index of its first instant
local rolling
local ownArg = 1
repeat
  limitCount = limitCount + 1
  local kind = ARGV[ownArg]
  local hasLadder = kind == 'F' or kind == 'S' or kind == 'B' or
    kind == 'P' or kind == 'R'
  if hasLadder then kind = string.lower(kind) end
  kinds[limitCount] = kind
  N[limitCount] = ARGV[ownArg + 1] + 0
  windows[limitCount] = ARGV[ownArg + 2] + 0
  rolling = rolling or kind == 'r'
  if kind == 'p' then
    periods = periods or {}
    periods[limitCount] = ownArg + 2
    ownArg = ownArg + 3
  end
  ownArg = ownArg + 3
  if kind == 'b' then
    bursts[limitCount] = ARGV[ownArg] + 0
    ownArg = ownArg + 1
  end
  if hasLadder then
    ladders = ladders or {}
    ladders[limitCount] = ARGV[ownArg]
    ownArg = ownArg + 1
  end
  local following = ARGV[ownArg]
until not following or tonumber(following) -- a limit begins with a letter

-- rolling.lua sets these. They are nil if no limit is a rolling window.
local readLog, bringLog, insert, moveLog, unit

local function fresh(a, b) return a == 0 and b == 0 end

-- muldiv returns floor(x*y/z) and the remainder, for x less than 2^51. A
-- quotient of 2^53 or more is not exact, but large enough.
local function muldiv(x, y, z)
  local product = x * y
  if product < 9007199254740992 then
    local remainder = product % z
    return (product - remainder) / z, remainder
  end
  -- Long multiplication in base 2: x is read bit by bit from the highest, and
  -- quotient and remainder are the result for the bits so far. The next bit
  -- doubles them. If it is set, it also adds the quotient and remainder of y.
  local yRemainder = y % z
  local yQuotient = (y - yRemainder) / z
  local quotient, remainder, bit = 0, 0, 1125899906842624 -- 2^50
  while bit >= 1 do
    quotient, remainder = quotient * 2, remainder * 2
    if remainder >= z then
      quotient, remainder = quotient + 1, remainder - z
    end
    if x >= bit then
      x = x - bit
      quotient, remainder = quotient + yQuotient, remainder + yRemainder
      if remainder >= z then
        quotient, remainder = quotient + 1, remainder - z
      end
    end
    bit = bit / 2
  end
  return quotient, remainder
end

local function ceildiv(x, z)
  local remainder = x % z
  if remainder > 0 then return (x - remainder) / z + 1 end
  return x / z
end

local function older(t, b, w, now)
  local units = muldiv(b, w - math.max(0, now - t), w)
  return units
end

local function drain(a, b, whole, part, w)
  a, b = a - whole, b - part
  if b < 0 then a, b = a - 1, b + w end
  if a < 0 then return 0, 0 end
  return a, b
end

-- at brings a state forward to now. It includes repair of internal/rule: a
-- state that is more than a window ahead of the clock is brought back to now.
-- For a calendar it is more than 1.5 periods, because the next one may be longer.
local function at(kind, t, a, b, n, w, burst, now)
  if kind == 'p' then
    if fresh(a, b) or t <= now then return burst, 0, 0 end
    if t - burst > 1.5 * w then t = burst end
    return t, a, b
  end
  if fresh(a, b) then return now, 0, 0 end
  if kind == 'r' then return bringLog(t, a, b, w, now) end
  if t >= now then
    if t - now > w then t = now end
    return t, a, b
  end
  local elapsed = now - t
  if kind == 'f' then
    if elapsed >= w then return now, 0, 0 end
  elseif kind == 's' then
    if elapsed >= 2 * w then return now, 0, 0 end
    if elapsed >= w then
      b = a
      t, a = t + w, 0
    end
    if a == 0 and older(t, b, w, now) == 0 then return now, 0, 0 end
  else
    local whole, part = muldiv(n, elapsed, w)
    a, b = drain(a, b, whole, part, w)
    t = now
  end
  return t, a, b
end

local function ceilMillis(micros) return math.ceil(micros / 1000) end

-- newWindowT returns T of a fixed window that opens now. The window ends when
-- its key expires, on a whole millisecond. That is rounded up, so T can be up
-- to a millisecond after now.
local function newWindowT(now, w) return ceilMillis(now + w) * 1000 - w end

-- left returns how many units still fit into a state, which is at now. It is
-- negative if the limit was lowered.
local function left(kind, t, a, b, n, w, burst, now)
  if kind == 's' then return n - a - older(t, b, w, now) end
  if kind ~= 'b' then return n - a end
  if b > 0 then a = a + 1 end -- a unit that has begun to leak
  return burst - a
end

-- resetAt returns the instant from which on a state counts as a fresh one: now
-- plus the Reset of a rule.Answer. A sliding window's units weigh nothing when
-- floor(a*(w-e)/w) is 0, e after the window that follows theirs has begun. The
-- first such e is w - ceildiv(w, a) + 1.
local function resetAt(kind, t, a, b, n, w, now)
  if kind == 'f' then return t + w end
  if kind == 'p' then return t end
  if kind == 'r' then return t + w end
  if kind == 's' then
    if a > 0 then return t + w + w - ceildiv(w, a) + 1 end
    return t + w - ceildiv(w, b) + 1
  end
  local span, remainder = muldiv(a, w, n)
  return math.max(t, now) + span + ceildiv(remainder + b, n)
end

-- readCounter returns the value of KEYS[i]: a string, false if the key is
-- missing, or an error, which is a table, if it is not a string. It calls by
-- redis.pcall, because an error of redis.call would end the script, and one key
-- of another type must not fail the takes of other keys.
local function readCounter(i)
  local value = redis.pcall('GET', KEYS[i])
  if type(value) == 'table' and not string.find(value.err, 'WRONGTYPE') then
    redis.call('GET', KEYS[i]) -- fails again, and ends the script
  end
  return value
end

-- setPeriods sets window and burst of calendars to the period that is in force.
-- It returns an error for the client if that is not in ARGV, because the clocks of
-- client and server are apart.
local function setPeriods(now)
  for i, arg in pairs(periods or {}) do
    if now < ARGV[arg] + 0 or now >= ARGV[arg + 3] + 0 then
      return redis.error_reply('CLOCK ' .. string.format(intFormat, now))
    end
    while now >= ARGV[arg + 1] + 0 do arg = arg + 1 end
    bursts[i] = ARGV[arg + 1] + 0
    windows[i] = bursts[i] - ARGV[arg]
  end
end

-- readAll returns the values of all keys, the PTTL of all fixed windows and
-- periods, the time, and the error of setPeriods, which it calls.
--
-- PTTL comes before TIME because time passes within a script, before
-- Redis 7.2. In this order, a window seems to end later than it does, by that
-- time. In the other order it would seem to end earlier, and a client that
-- comes back at that end would be denied again.
local function readAll()
  local values, lives, call = {}, {}, redis.call
  for i = 1, #KEYS do
    values[i] = readCounter(i)
    local kind = kinds[(i - 1) % limitCount + 1]
    if values[i] and (kind == 'f' or kind == 'p') then
      lives[i] = call('PTTL', KEYS[i])
    end
  end
  local time = call('TIME')
  local now = time[1] * 1000000 + time[2]
  return values, lives, now, periods and setPeriods(now)
end

-- decode returns the state t, a, b that a key holds, from its value, and its
-- PTTL (life) if it is a fixed window or a period: -2 if the key is missing, -1 if it has
-- no time to live. It returns nil if the value is not a counter.
--
-- The fourth result is true if the key must be written even if no units are
-- added: it has no time to live, or it was written by a clock that was further
-- ahead than a window or a block lasts. The fifth one is the counter's block, or
-- nil if it has none or one that is forgotten.
--
-- A value of 24 bytes is three big-endian doubles, T, A and B. No version writes
-- such values so far. They take the server less time than text: see
-- docs/redis.md. Every version reads them, so that a later one can write them
-- while this one runs, too. Their first byte, of an instant after 1987, is C,
-- with which no text of digits begins. The library struct is missing in some
-- servers that run Lua.
--
-- This is one function because each one that a script makes costs all its calls.
local function decode(kind, value, life, w, burst, now)
  if not value or life == -2 then return now, 0, 0, false end
  if type(value) ~= 'string' then return nil end
  local isCount = kind == 'f' or kind == 'p'
  if isCount and (value == '0' or string.find(value, '^[1-9]%d*$')) then
    -- It is a number that INCRBY accepts. It must be less than 1e15.
    if #value > 15 then return nil end
    if life == -1 then return kind == 'p' and burst or now, tonumber(value), 0, true end
    if kind == 'p' then
      -- Time may have passed between PTTL and TIME. No other period ends so close
      -- to the end of the present one.
      local t = (math.floor(now / 1000) + life) * 1000
      if math.abs(t - burst) <= 2000 then t = burst end
      return t, tonumber(value), 0, t - burst > 1.5 * w
    end
    local t = (math.floor(now / 1000) + life) * 1000 - w
    return t, tonumber(value), 0, t - now > w
  end
  if #value == 24 and (kind == 's' or kind == 'b') and string.byte(value) == 67 then -- 67 is C
    local struct = rawget(_G, 'struct')
    if not struct then return nil end
    local t, a, b = struct.unpack('>ddd', value)
    if t % 1 ~= 0 or a % 1 ~= 0 or b % 1 ~= 0 or a < 0 or a >= 1e15 or b < 0 or b > exact then return nil end
    return t, a, b, t - now > w
  end
  local mustWrite, block = life == -1, nil
  local t, a, b, ends, lasts, rung, forget
  if kind == 'r' then
    local log = value
    if string.sub(value, 1, 1) == '!' then
      ends, lasts, rung, forget, log = string.match(value, '^!(%d+) (%d+) ([0-4]) (%d+) (.*)$')
      if not ends then return nil end
    end
    t, a, b = readLog(log, now)
    if not t or value == '' then return nil end
  else
    if not isCount then t, a, b = string.match(value, '^(%d+) (%d+) (%d+)$') end
    if not t then
      t, a, b, ends, lasts, rung, forget =
        string.match(value, '^(%d+) (%d+) (%d+) !(%d+) (%d+) ([0-4]) (%d+)$')
      if not t then return nil end
    end
    if #t > 16 or #a > 15 or #b > 16 then return nil end
    t, a, b = t + 0, a + 0, b + 0
    if b > exact then return nil end
    if kind == 'p' then b = 0 end
  end
  if ends then
    if #ends > 16 or #lasts > 16 or #forget > 16 then return nil end
    block = {ends = ends + 0, lasts = lasts + 0, rung = rung + 0, forget = forget + 0}
    if math.max(block.ends, block.lasts, block.forget) > exact then return nil end
    if block.ends - now > block.lasts then
      -- The clock was set back. No block has more left than its whole duration.
      block.ends, mustWrite = now + block.lasts, true
    end
    if block.ends + block.forget <= now then block = nil end
  end
  local ahead, longest = t - now, w
  if kind == 'p' then ahead, longest = t - burst, 1.5 * w end
  return t, a, b, mustWrite or ahead > longest, block
end

-- maxEnd is the latest instant at which a key may expire, in milliseconds: more
-- than a thousand centuries from now. Redis refuses 2^63 or more, and a bucket
-- that was filled under a far larger limit can take that long to leak.
local maxEnd = 4503599627370496

-- write stores a state and a block. The key expires when the state counts as a
-- fresh one and the block is forgotten. If both are so now, the key is deleted.
local function write(key, kind, t, a, b, n, w, now, block)
  local ends = now
  if not fresh(a, b) then
    ends = resetAt(kind, t, a, b, n, w, now)
  elseif not block then
    redis.call('DEL', key)
    return
  end
  local value = a
  if kind == 'r' then
    value = b
    if a == 0 then value = '' end
  elseif kind ~= 'f' and (kind ~= 'p' or block) then
    value = string.format(stateFormat, t, a, b)
  elseif block then
    -- The window ends on a whole millisecond, as without a block.
    value = string.format(stateFormat, newWindowT(t, w), a, 0)
  end
  if block then
    ends = math.max(ends, block.ends + block.forget)
    local blocked = '!' .. string.format(stateFormat, block.ends, block.lasts, block.rung) ..
      string.format(' ' .. intFormat, block.forget)
    if kind == 'r' then
      value = blocked .. ' ' .. value -- before the log, in which any byte can be
    else
      value = value .. ' ' .. blocked
    end
  end
  ends = math.min(maxEnd, ceilMillis(ends))
  redis.call('SET', key, value, 'PXAT', string.format(intFormat, ends))
end
