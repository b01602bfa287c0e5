-- The logs of rolling windows, and the arithmetic of internal/rule on them.
--
-- After lib.lua in Take, Adjust and Block, between "if rolling then" and "end".
-- Making a function takes the server time, and other limits need none of these.
--
-- A log has 7 bytes for each unit: its instant in microseconds, big-endian, from
-- the oldest to the youngest. An instant is less than 2^53, so its first byte is
-- less than 32. No text begins so. Seven bytes are the fewest that hold an instant,
-- and a number of digits would take 16.
--
--   KEYS ARGV reply   up to the files that follow
--
-- Expects the locals of lib.lua. Sets readLog, bringLog, insert, moveLog and unit.
-- Parameters t, a and b are a state with a log, as lib.lua describes it.
--
-- Checked against internal/rule by TestScriptsFollowTheRules and FuzzScripts:
-- they run random histories on a clock of their own, here and in the rule.

local maxRolling = 1000 -- MaxRolling of internal/rule

-- unit returns the instant of unit number i, from 1.
unit = function(log, i)
  local a, b, c, d, e, f, g = string.byte(log, 7 * i - 6, 7 * i)
  return (((((a * 256 + b) * 256 + c) * 256 + d) * 256 + e) * 256 + f) * 256 + g
end

-- pack returns the 7 bytes of an instant.
local function pack(instant)
  local low = instant % 16777216 -- 3 bytes
  local high = (instant - low) / 16777216
  local floor = math.floor
  return string.char(floor(high / 16777216), floor(high / 65536) % 256, floor(high / 256) % 256, high % 256,
    floor(low / 65536), floor(low / 256) % 256, low % 256)
end

-- since returns how many of the a units in a log are older than an instant.
local function since(log, a, instant)
  local older, other = 0, a
  while older < other do
    local middle = math.floor((older + other) / 2)
    if unit(log, middle + 1) < instant then older = middle + 1 else other = middle end
  end
  return older
end

-- readLog returns the state of a log, or nil if it is none.
readLog = function(log, now)
  local a = #log / 7
  if a == 0 then return now, 0, 0 end
  if a % 1 ~= 0 or a > maxRolling then return nil end
  local youngest = unit(log, a)
  if youngest >= exact or unit(log, 1) > youngest then return nil end
  return youngest, a, log
end

-- bringLog removes the units that have left the window. Before that, it moves a log
-- whose youngest unit is more than a window ahead of the clock back to now.
bringLog = function(t, a, b, w, now)
  if t - now > w then
    local kept = since(b, a, now + 1)
    b = string.sub(b, 1, 7 * kept) .. string.rep(pack(now), a - kept)
    t = now
  end
  local gone = since(b, a, now - w + 1)
  if gone == a then return now, 0, 0 end
  if gone > 0 then b = string.sub(b, 7 * gone + 1) end
  return t, a - gone, b
end

-- insert adds units of an instant to a state, in order.
insert = function(t, a, b, instant, units)
  local added = string.rep(pack(instant), units)
  if a == 0 then return instant, units, added end
  local before = a
  if instant < t then before = since(b, a, instant + 1) end
  return math.max(t, instant), a + units, string.sub(b, 1, 7 * before) .. added .. string.sub(b, 7 * before + 1)
end

-- moveLog is AdjustLog of internal/rule.
moveLog = function(t, a, b, n, w, now, units, taken)
  if units > 0 then
    taken = math.min(taken, now)
    units = math.min(units, math.max(0, math.min(n, maxRolling) - a))
    if units == 0 or taken <= now - w then return t, a, b end
    return insert(t, a, b, taken, units)
  end
  local from, to = since(b, a, taken), a
  if taken < t then to = since(b, a, taken + 1) end
  if from == to and taken > now then from, to = 0, a end
  units = math.min(-units, to - from)
  if units == a then return now, 0, 0 end
  b = string.sub(b, 1, 7 * (to - units)) .. string.sub(b, 7 * to + 1)
  a = a - units
  return unit(b, a), a, b
end
