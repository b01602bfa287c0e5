-- Takes of many keys under the same limits, no key twice. ARGV[1] is how many limits there
-- are; they follow, and then the units and the callers of each take, as in take.lua.
--
-- Returns the time, and for each take what take.lua returns. Where a counter is
-- none, the number of admitted callers is less than 0 by the counter's number, and
-- nothing was changed for that take.

limits = ARGV[1] + 0
learn(2)
local raw, life, now = read()
local reply, last, args = {now}, 1, 2 + 4 * limits
local call, find, type = redis.call, string.find, type
local single, n, w, began = limits == 1 and kinds[1] == 'f', N[1], W[1], now - now % 1000 - W[1]
for from = 0, #KEYS - 1, limits do
  local cost, callers = ARGV[args], ARGV[args + 1]
  args = args + 2
  local count, left = raw[from + 1], life[from + 1]
  -- One more unit of one fixed window, which is most takes, by the shortest way.
  if single and callers == '1' and left and left > 0 and left * 1000 <= 2 * w and type(count) == 'string'
    and #count <= 15 and find(count, '^%d+$') then
    count = count + 0
    local admitted = 1
    if count + cost > n then
      admitted = 0
    elseif cost ~= '0' then
      call('INCRBY', KEYS[from + 1], cost)
    end
    reply[last + 1], reply[last + 2], reply[last + 3], reply[last + 4] = admitted, began + left * 1000, count, 0
  else
    local none = taking(from, cost + 0, callers + 0, raw, life, now, reply)
    if none then
      reply[last + 1] = -none
      for i = 2, 1 + 3 * limits do reply[last + i] = 0 end
    end
  end
  last = last + 1 + 3 * limits
end
return reply
