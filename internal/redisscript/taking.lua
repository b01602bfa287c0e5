-- taking decides on a take of the counters after from, and carries it out: cost units for
-- each of so many callers, as far as they fit, all units of a caller under every limit or
-- none. It appends to reply how many were admitted and each counter's state before the
-- first of them. The result is the number of a counter that is none, or nil.
local function taking(from, cost, callers, raw, life, now, reply)
  local admitted = callers
  local T, A, B, repair = {}, {}, {}, {}
  for i = 1, limits do
    local kind, n, w, burst = kinds[i], N[i], W[i], bursts[i]
    local t, a, b, broken = state(kind, raw[from + i], life[from + i], w, now)
    if not t then return i end
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
  local last = #reply + 1
  reply[last] = admitted
  for i = 1, limits do
    local kind, n, w = kinds[i], N[i], W[i]
    local key, t, a, b = KEYS[from + i], T[i], A[i], B[i]
    if taken > 0 and kind == 'f' and a > 0 and not repair[i] then
      redis.call('INCRBY', key, text(taken)) -- which keeps its time to live
    elseif taken > 0 or repair[i] then
      write(key, kind, t, a + taken, b, n, w, now)
    elseif raw[from + i] and kind ~= 'f' and redis.call('PTTL', key) == -1 then
      write(key, kind, t, a, b, n, w, now)
    end
    reply[last + 1], reply[last + 2], reply[last + 3] = t, a, b
    last = last + 3
  end
end
