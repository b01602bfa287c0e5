-- Moves each counter by some units that were taken so many microseconds into this server's
-- time, or now where that is "now", as far as they still count: these are the two arguments
-- after the limits.
--
-- Returns the time, and for each limit its state before and after.

local units, taken = tonumber(ARGV[rest]), ARGV[rest + 1]
local raw, life, now

-- Units belong to the window that they were taken in. But before Redis 7.2 time passes in a
-- script, and to a server that is held up between PTTL and TIME, a fixed window seems to have
-- opened later by as much, perhaps after its own units were taken. So what was not read within
-- a millisecond is read again, though not for ever where the machine is never that fast.
for _ = 1, 5 do
  local time = redis.call('TIME')
  raw, life, now = read()
  if math.abs(now - (time[1] * 1000000 + time[2])) < 1000 then break end
end

local age = 0
if taken ~= 'now' then age = math.max(0, now - tonumber(taken)) end

-- shift moves a window's count, between zero and the limit; a count that a lowered
-- limit has left above it stays.
local function shift(count, n)
  if units < 0 then return math.max(0, count + units) end
  return math.max(count, math.min(count + units, n))
end

local function adjust(kind, t, a, b, n, w, burst)
  if units == 0 or (units < 0 and fresh(a, b)) then return t, a, b end
  local elapsed = math.max(0, now - t)
  if kind == 'b' then
    local _, rest, part = at(kind, now - age, math.abs(units), 0, n, w, now)
    if units < 0 then
      a, b = drain(a, b, rest, part, w)
    elseif a < burst then
      a, b = a + rest, b + part
      if b >= w then a, b = a + 1, b - w end
      if a >= burst then a, b = burst, 0 end
    end
  elseif fresh(a, b) then
    t, a, b = at(kind, now - age, math.min(units, n), 0, n, w, now)
    if kind == 'f' and a > 0 then t = opens(t, w) end
  elseif age <= elapsed or (kind == 'f' and (age <= elapsed + 2000 or units > 0 and age < w)) then
    -- Two milliseconds are what a fixed window may have opened late: one by the rounding
    -- of its end, and one that may have begun between PTTL and TIME.
    a = shift(a, n)
  elseif kind == 's' and age - elapsed <= w then
    b = shift(b, n)
  end
  return at(kind, t, a, b, n, w, now) -- for an older half that weighs nothing alone
end

local change = {}
local reply = {now}
for i = 1, #KEYS do
  local kind, n, w, burst = kinds[i], N[i], W[i], bursts[i]
  local t, a, b, repair = state(kind, raw[i], life[i], w, now)
  if not t then return redis.error_reply('JUNK ' .. i) end
  t, a, b = at(kind, t, a, b, n, w, now)
  local t2, a2, b2 = adjust(kind, t, a, b, n, w, burst)
  change[i] = function()
    if kind == 'f' and a > 0 and a2 > 0 and not repair then
      if a2 ~= a then redis.call('INCRBY', KEYS[i], a2 - a) end -- which keeps its time to live
    elseif raw[i] or not fresh(a2, b2) then
      write(KEYS[i], kind, t2, a2, b2, n, w, now)
    end
  end
  for _, number in ipairs({t, a, b, t2, a2, b2}) do reply[#reply + 1] = number end
end
for i = 1, #KEYS do change[i]() end
return reply
