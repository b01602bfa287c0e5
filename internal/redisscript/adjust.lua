-- Adjust moves the counters of one key by some units, without asking whether
-- they fit: it gives units back, or charges units that were used already. It
-- moves each counter only as far as the units still count there. It keeps the
-- counters' blocks.
--
-- Adjust is lib.lua, rolling.lua, move.lua and then this file. The package comment in script.go
-- describes the protocol:
--
--   KEYS   a counter for each limit
--   ARGV   for each limit: as for lib.lua, without ladders
--          the units: less than 0 gives them back, more than 0 charges them
--          when they were taken, by this server's time, or "now"
--   reply  the server's time
--          for each limit: T, A, B before, and T, A, B after; of a rolling
--            window B is 0
--   error  JUNK i, if key i does not hold a counter, or CLOCK and the server's
--          time; nothing was changed
--
-- Instants and windows are in microseconds.
--
-- Expects the locals of lib.lua and move.lua. Returns the reply.
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
local values, lives, now, wrong
for _ = 1, 5 do
  local time = redis.call('TIME')
  values, lives, now, wrong = readAll()
  if wrong then return wrong end
  if math.abs(now - (time[1] * 1000000 + time[2])) < 1000 then break end
end

local taken = tonumber(takenAt) or math.huge

-- Nothing is written until all keys are known to hold counters.
local before, after, mustWrite, blocks = {}, {}, {}, {}
local reply = {now}
for i = 1, #KEYS do
  local kind, n, w, burst = kinds[i], N[i], windows[i], bursts[i]
  local t, a, b, needed, block = decode(kind, values[i], lives[i], w, burst, now)
  if not t then return redis.error_reply('JUNK ' .. i) end
  t, a, b = at(kind, t, a, b, n, w, burst, now)
  before[i], after[i] = {t, a, b}, {move(kind, t, a, b, n, w, burst, now, units, taken)}
  mustWrite[i], blocks[i] = needed, block
  for _, state in ipairs({before[i], after[i]}) do
    for j, number in ipairs(state) do
      if j == 3 and kind == 'r' then number = 0 end
      reply[#reply + 1] = number
    end
  end
end

for i = 1, #KEYS do
  local kind, n, w = kinds[i], N[i], windows[i]
  local oldA, t, a, b = before[i][2], unpack(after[i])
  if (kind == 'f' or kind == 'p') and oldA > 0 and a > 0 and not mustWrite[i] and tonumber(values[i]) then
    -- INCRBY keeps the time to live, and so the window's end. The value is not a
    -- number if it has a block, perhaps a forgotten one.
    if a ~= oldA then redis.call('INCRBY', KEYS[i], a - oldA) end
  elseif values[i] or not fresh(a, b) then
    write(KEYS[i], kind, t, a, b, n, w, now, blocks[i])
  end
end
return reply
