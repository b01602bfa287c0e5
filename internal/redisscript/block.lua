-- Block joins a block with the block of each counter of one key: the later end
-- stays, the higher rung, and the longer time for which the rung is remembered.
-- It is for blocks by hand, which have rung 0, and for blocks that a process has
-- started while it could not reach this server.
--
-- Block is lib.lua, rolling.lua and then this file. The package comment in script.go
-- describes the protocol:
--
--   KEYS   a counter for each limit
--   ARGV   for each limit: as for lib.lua, without ladders
--          how long the block lasts from now on, or less than 0: it is over
--          its rung, and its forget
--   reply  the server's time
--   error  JUNK i, if key i does not hold a counter, or CLOCK and the server's
--          time; nothing was changed
--
-- Instants and spans are in microseconds.
--
-- Expects the locals of lib.lua. Returns the reply.
--
-- Checked against internal/rule by TestScriptsFollowTheRules and FuzzScripts:
-- they run random histories on a clock of their own, here and in the rule.

local lasts, rung, forget = ARGV[ownArg] + 0, ARGV[ownArg + 1] + 0, ARGV[ownArg + 2] + 0
local values, lives, now, wrong = readAll()
if wrong then return wrong end

-- Nothing is written until all keys are known to hold counters.
local states, blocks = {}, {}
for i = 1, #KEYS do
  local t, a, b, _, block = decode(kinds[i], values[i], lives[i], windows[i], bursts[i], now)
  if not t then return redis.error_reply('JUNK ' .. i) end
  states[i] = {at(kinds[i], t, a, b, N[i], windows[i], bursts[i], now)}
  block = block or {ends = 0, lasts = 0, rung = 0, forget = 0}
  if now + lasts > block.ends then
    block.ends, block.lasts = now + lasts, math.max(0, lasts)
  end
  block.rung, block.forget = math.max(block.rung, rung), math.max(block.forget, forget)
  blocks[i] = block
end

for i = 1, #KEYS do
  local t, a, b = unpack(states[i])
  local block = blocks[i]
  if block.ends + block.forget <= now then block = nil end
  write(KEYS[i], kinds[i], t, a, b, N[i], windows[i], now, block)
end
return {now}
