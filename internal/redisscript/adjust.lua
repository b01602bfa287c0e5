-- Adjust moves the counters of one key by some units, without asking whether
-- they fit: it gives units back, or charges units that were used already. It
-- moves each counter only as far as the units still count there.
--
-- Adjust is lib.lua and then this file. The package comment in script.go
-- describes the protocol:
--
--   KEYS   a counter for each limit
--   ARGV   for each limit: kind (f, s or b), N, window, and burst if it is a b
--          the units: less than 0 gives them back, more than 0 charges them
--          when they were taken, by this server's time, or "now"
--   reply  the server's time
--          for each limit: T, A, B before, and T, A, B after
--   error  JUNK i, if key i does not hold a counter; nothing was changed
--
-- Instants and windows are in microseconds.
--
-- Expects the locals of lib.lua. Returns the reply.
--
-- Checked against internal/rule by TestScriptsFollowTheRules and FuzzScripts:
-- they run random histories on a clock of their own, here and in the rule.
-- TestAdjustHeldUp has a clock that goes on between the commands of the script.

local units, takenAt = tonumber(ARGV[ownArg]), ARGV[ownArg + 1]

-- Units belong to the window in which they were taken. Before Redis 7.2, time
-- passes within a script. If the server is held up between PTTL and TIME, a
-- fixed window seems to have opened later than it has, by that time: perhaps
-- even later than its own units were taken. So the script reads again until it
-- has read everything within a millisecond. It gives up after five times, for a
-- machine may never be that fast.
local values, lives, now
for _ = 1, 5 do
  local time = redis.call('TIME')
  values, lives, now = readAll()
  if math.abs(now - (time[1] * 1000000 + time[2])) < 1000 then break end
end

local age = 0 -- of the units
if takenAt ~= 'now' then age = math.max(0, now - tonumber(takenAt)) end

-- shift moves a window's count by the units, between zero and the limit. A
-- count that is already above the limit, because the limit was lowered, stays.
local function shift(count, n)
  if units < 0 then return math.max(0, count + units) end
  return math.max(count, math.min(count + units, n))
end

-- adjust returns a state with the units moved, as Adjust of internal/rule does.
-- The state must have been brought forward to now.
local function adjust(kind, t, a, b, n, w, burst)
  if units == 0 or (units < 0 and fresh(a, b)) then return t, a, b end
  local elapsed = math.max(0, now - t)
  if kind == 'b' then
    -- Units leak in the order they came. whole and part are how much of these
    -- units has not leaked yet.
    local _, whole, part = at(kind, now - age, math.abs(units), 0, n, w, now)
    if units < 0 then
      a, b = drain(a, b, whole, part, w)
    elseif a < burst then
      a, b = a + whole, b + part
      if b >= w then a, b = a + 1, b - w end
      if a >= burst then a, b = burst, 0 end
    end
  elseif fresh(a, b) then
    t, a, b = at(kind, now - age, math.min(units, n), 0, n, w, now)
    if kind == 'f' and a > 0 then t = newWindowT(t, w) end
  elseif age <= elapsed then
    a = shift(a, n) -- they were taken in this window
  elseif kind == 'f' and (age <= elapsed + 2000 or units > 0 and age < w) then
    -- A fixed window can seem to have opened up to two milliseconds late: one
    -- from the rounding of its end, and one that may have begun between PTTL
    -- and TIME. Units to charge that are older than the window, but younger
    -- than its length, would have opened a window that is still open.
    a = shift(a, n)
  elseif kind == 's' and age - elapsed <= w then
    b = shift(b, n) -- they were taken in the window before
  end
  return at(kind, t, a, b, n, w, now) -- fresh, if the units left weigh nothing
end

-- Nothing is written until all keys are known to hold counters.
local before, after, needsTTL = {}, {}, {}
local reply = {now}
for i = 1, #KEYS do
  local kind, n, w, burst = kinds[i], N[i], windows[i], bursts[i]
  local t, a, b, needed = decode(kind, values[i], lives[i], w, now)
  if not t then return redis.error_reply('JUNK ' .. i) end
  t, a, b = at(kind, t, a, b, n, w, now)
  before[i], after[i] = {t, a, b}, {adjust(kind, t, a, b, n, w, burst)}
  needsTTL[i] = needed
  for _, number in ipairs(before[i]) do reply[#reply + 1] = number end
  for _, number in ipairs(after[i]) do reply[#reply + 1] = number end
end

for i = 1, #KEYS do
  local kind, n, w = kinds[i], N[i], windows[i]
  local oldA, t, a, b = before[i][2], unpack(after[i])
  if kind == 'f' and oldA > 0 and a > 0 and not needsTTL[i] then
    -- INCRBY keeps the time to live, and so the window's end.
    if a ~= oldA then redis.call('INCRBY', KEYS[i], a - oldA) end
  elseif values[i] or not fresh(a, b) then
    write(KEYS[i], kind, t, a, b, n, w, now)
  end
end
return reply
