-- Takes ARGV[1] units for each of ARGV[2] callers, one after the other, as far as they
-- fit: all units of a caller under every limit, or none.
--
-- Returns the time, how many callers were admitted, and for each limit its state before
-- the first of them: what each caller is to be told follows from that.

local cost, callers = tonumber(ARGV[1]), tonumber(ARGV[2])
local raw, life, now = read()
local admitted = callers
local T, A, B, repair = {}, {}, {}, {}
for i = 1, #KEYS do
  local kind, n, w, burst = ARGV[4 * i - 1], tonumber(ARGV[4 * i]), tonumber(ARGV[4 * i + 1]), tonumber(ARGV[4 * i + 2])
  local t, a, b, broken = state(kind, raw[i], life[i], w, now)
  if not t then return junk(i) end
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
local reply = {now, admitted}
for i = 1, #KEYS do
  local kind, t, a, b = ARGV[4 * i - 1], T[i], A[i], B[i]
  if taken > 0 and kind == 'f' and a > 0 and not repair[i] then
    redis.call('INCRBY', KEYS[i], text(taken)) -- which keeps its time to live
  elseif taken > 0 or repair[i] then
    write(KEYS[i], kind, t, a + taken, b, tonumber(ARGV[4 * i]), tonumber(ARGV[4 * i + 1]), now)
  elseif raw[i] and kind ~= 'f' and redis.call('PTTL', KEYS[i]) == -1 then
    write(KEYS[i], kind, t, a, b, tonumber(ARGV[4 * i]), tonumber(ARGV[4 * i + 1]), now)
  end
  reply[3 * i], reply[3 * i + 1], reply[3 * i + 2] = t, a, b
end
return reply
