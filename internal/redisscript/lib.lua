-- The counting rules of internal/rule, for Redis. The names are the same, and so is
-- the arithmetic: what the numbers mean is said there.
--
-- Lua's numbers are doubles, which hold integers below 2^53 exactly. Units are below
-- 2^50; instants and spans are microseconds, below 2^51. Products are not below 2^53,
-- so muldiv takes them in parts where it has to.
--
-- KEYS are the counters, one for each limit, those of one key after those of another. ARGV
-- begins with the limits: of each its kind (f, s or b), N and window, and of a bucket its burst.
-- What follows them is the script's own, and begins with a number.
--
-- A number that is given to a command Redis writes in 17 digits. %d is the fastest way to write
-- one, but on a server of 32 bits it cannot write them all.

local number, numbers = '%d', '%d %d %d'
if string.format(number, 9007199254740992) ~= '9007199254740992' then
  number, numbers = '%.0f', '%.0f %.0f %.0f'
end

local limits, kinds, N, W, bursts = 0, {}, {}, {}, {}
local rest = 1 -- the first argument after the limits
repeat
  limits = limits + 1
  kinds[limits], N[limits], W[limits] = ARGV[rest], ARGV[rest + 1] + 0, ARGV[rest + 2] + 0
  rest = rest + 3
  if kinds[limits] == 'b' then
    bursts[limits] = ARGV[rest] + 0
    rest = rest + 1
  end
  local following = ARGV[rest]
until following ~= 'f' and following ~= 's' and following ~= 'b'

local function fresh(a, b) return a == 0 and b == 0 end

-- muldiv returns floor(x*y/z) and the rest. A quotient of 2^53 or more is not exact,
-- only large.
local function muldiv(x, y, z)
  local p = x * y
  if p < 9007199254740992 then
    local rest = p % z
    return (p - rest) / z, rest
  end
  local yrest = y % z
  local ywhole = (y - yrest) / z
  local whole, rest, bit = 0, 0, 1125899906842624
  while bit >= 1 do
    whole, rest = whole * 2, rest * 2
    if rest >= z then whole, rest = whole + 1, rest - z end
    if x >= bit then
      x, whole, rest = x - bit, whole + ywhole, rest + yrest
      if rest >= z then whole, rest = whole + 1, rest - z end
    end
    bit = bit / 2
  end
  return whole, rest
end

local function ceildiv(x, z)
  local rest = x % z
  if rest > 0 then return (x - rest) / z + 1 end
  return x / z
end

local function older(t, b, w, now)
  return (muldiv(b, w - math.max(0, now - t), w))
end

local function drain(a, b, whole, part, w)
  a, b = a - whole, b - part
  if b < 0 then a, b = a - 1, b + w end
  if a < 0 then return 0, 0 end
  return a, b
end

-- at brings a state forward to now. One that is more than a window ahead of the clock
-- is brought back to now.
local function at(kind, t, a, b, n, w, now)
  if fresh(a, b) then return now, 0, 0 end
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

-- whole is the instant at which a state cannot be told from a fresh one.
local function whole(kind, t, a, b, n, w, now)
  if kind == 'f' then return t + w end
  if kind == 's' then
    if a > 0 then return t + w + w - ceildiv(w, a) + 1 end
    return t + w - ceildiv(w, b) + 1
  end
  local units, rest = muldiv(a, w, n)
  return math.max(t, now) + units + ceildiv(rest + b, n)
end

local function millis(micros) return math.ceil(micros / 1000) end

-- A fixed window ends when its key does, on a whole millisecond, rounded up: opens is
-- when one that a unit of now opens has begun.
local function opens(now, w) return millis(now + w) * 1000 - w end

-- get returns what key number i holds, undecoded.
local function get(i)
  local value = redis.pcall('GET', KEYS[i])
  if type(value) == 'table' and not string.find(value.err, 'WRONGTYPE') then
    redis.call('GET', KEYS[i]) -- and so fails with the server's own words
  end
  return value
end

-- read returns what each key holds, the remaining life of fixed windows, and the time. TIME
-- comes last, so that a window's end is never taken for earlier than it is.
local function read()
  local raw, life, call = {}, {}, redis.call
  for i = 1, #KEYS do
    raw[i] = get(i)
    if raw[i] and kinds[(i - 1) % limits + 1] == 'f' then life[i] = call('PTTL', KEYS[i]) end
  end
  local time = call('TIME')
  return raw, life, time[1] * 1000000 + time[2]
end

-- state decodes what a key holds. The last result is true if the key has to be given
-- another time to live, whatever happens to its units.
local function state(kind, raw, life, w, now)
  if not raw or life == -2 then return now, 0, 0, false end
  if type(raw) ~= 'string' then return nil end
  if kind == 'f' then
    if raw ~= '0' and not string.find(raw, '^[1-9]%d*$') or #raw > 15 then return nil end -- as INCRBY has it
    if life == -1 then return now, tonumber(raw), 0, true end
    local t = (math.floor(now / 1000) + life) * 1000 - w
    return t, tonumber(raw), 0, t - now > w
  end
  local t, a, b = string.match(raw, '^(%d+) (%d+) (%d+)$')
  if not t or #t > 16 or #a > 15 or #b > 16 then return nil end
  t = tonumber(t)
  return t, tonumber(a), tonumber(b), t - now > w
end

-- Redis takes no end of 2^63 or more, which a bucket can come to that was filled under a
-- far larger limit. This one is in some thousand centuries.
local latest = 4503599627370496

-- write keeps a state, until it cannot be told from a fresh one.
local function write(key, kind, t, a, b, n, w, now)
  if fresh(a, b) then
    redis.call('DEL', key)
    return
  end
  local value = a
  if kind ~= 'f' then value = string.format(numbers, t, a, b) end
  local ends = math.min(latest, millis(whole(kind, t, a, b, n, w, now)))
  redis.call('SET', key, value, 'PXAT', string.format(number, ends))
end
