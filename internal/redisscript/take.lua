-- Takes of one key or of many, all under the same limits, no key twice: each of cost units for
-- each of some callers, one after the other, as far as they fit. All units of a caller are taken
-- under every limit or none.
--
-- After the limits ARGV has three arguments for each take that is not of one unit for one caller:
-- its number, the units and the callers. The numbers ascend.
--
-- Returns the time, and for each take and limit the state before the first caller, T, A and B,
-- but of a fixed window only T and A: what each caller is to be told follows from that. Then two
-- numbers for each take of which not all callers were admitted: its own, and how many were.
-- Where a counter is none, that is less than 0 by the counter's number, and nothing was changed
-- for that take.

local takes, width = #KEYS / limits, 0 -- and the numbers of a take in the reply
for i = 1, limits do
  if kinds[i] == 'f' then width = width + 2 else width = width + 3 end
end

local raw, life = {}, {}
local cost, callers = {}, {} -- where they are not 1
for at = rest, #ARGV, 3 do
  local i = ARGV[at] + 0
  cost[i], callers[i] = ARGV[at + 1] + 0, ARGV[at + 2] + 0
end

-- taking decides on the take of the counters after from, and carries it out. It sets their
-- states in reply after place, and returns how many callers were admitted, or what stands for that.
local function taking(from, cost, callers, place)
  local admitted = callers
  local T, A, B, repair = {}, {}, {}, {}
  for i = 1, limits do
    local kind, n, w, burst = kinds[i], N[i], W[i], bursts[i]
    local t, a, b, broken = state(kind, raw[from + i], life[from + i], w, now)
    if not t then
      for j = 1, width do reply[place + j] = 0 end
      return -i
    end
    t, a, b = at(kind, t, a, b, n, w, now)
    local left = n - a
    if kind == 's' then
      left = left - older(t, b, w, now)
    elseif kind == 'b' then
      left = burst - a
      if b > 0 then left = left - 1 end
    elseif a == 0 then
      t = opens(now, w)
    end
    if cost > 0 then
      admitted = math.min(admitted, math.max(0, math.floor(left / cost)))
    end
    T[i], A[i], B[i], repair[i] = t, a, b, broken
  end

  local taken = cost * admitted
  for i = 1, limits do
    local kind, n, w = kinds[i], N[i], W[i]
    local key, t, a, b = KEYS[from + i], T[i], A[i], B[i]
    if taken > 0 and kind == 'f' and a > 0 and not repair[i] then
      redis.call('INCRBY', key, taken) -- which keeps its time to live
    elseif taken > 0 or repair[i] then
      write(key, kind, t, a + taken, b, n, w, now)
    elseif raw[from + i] and kind ~= 'f' and redis.call('PTTL', key) == -1 then
      write(key, kind, t, a, b, n, w, now)
    end
    reply[place + 1], reply[place + 2] = t, a
    if kind == 'f' then place = place + 2 else reply[place + 3], place = b, place + 3 end
  end
  return admitted
end

if later then -- of one limit each, and the time and a fixed window's life have been read
  for _, i in ipairs(later) do
    raw[i] = get(i)
    if kinds[1] == 'f' then life[i] = reply[2 * i] end
  end
else
  later, last = {}, 1 + width * takes
  for i = 1, takes do later[i] = i end
  raw, life, now = read()
  reply = {now}
end
for _, i in ipairs(later) do
  local all = callers[i] or 1
  local admitted = taking((i - 1) * limits, cost[i] or 1, all, 1 + (i - 1) * width)
  if admitted ~= all then
    reply[last + 1], reply[last + 2] = i, admitted
    last = last + 2
  end
end
return reply
