-- Gives a script a clock of the test's own, and keys that expire by this clock.
-- rule_test.go joins this file and then the files of a script.
--
-- The key "clock" holds the time, in microseconds. A counter is a hash, of its
-- value and its end, and there is one hash of another kind, with holds. It expires as in Redis, by whole milliseconds, when its end
-- has passed. The time does not change while the script runs, except after a
-- PTTL: each takes a number from the list "held", if one is left, and the time
-- goes on by that number.
--
-- Leaves redis to the files after it, with the commands that the scripts use.
local redis = (function(real)
  local now = real.call('GET', 'clock') + 0
  local ms = math.floor(now / 1000)

  local function get(key)
    local value, ends = unpack(real.call('HMGET', key, 'value', 'ends'))
    if ends and ms > ends + 0 then
      real.call('DEL', key)
      return false, false
    end
    return value, ends
  end

  -- As Redis writes a number that is an argument, and reads a 64-bit integer.
  local function integer(text)
    if type(text) == 'number' then
      if math.abs(text) >= 1e17 then error('not written in 17 digits: ' .. text) end
      text = string.format(text % 1 == 0 and '%.0f' or '%.17g', text)
    end
    if not string.find(text, '^-?%d+$') or #text > 18 then error('not an integer: ' .. text) end
    return text
  end

  local commands = {
    TIME = function() return {string.format('%.0f', math.floor(now / 1000000)), string.format('%.0f', math.fmod(now, 1000000))} end,
    GET = function(key) return (get(key)) end,
    MGET = function(...)
      local values = {}
      for i, key in ipairs({...}) do values[i] = get(key) end
      return values
    end,
    PTTL = function(key)
      local value, ends = get(key)
      if not value then return -2 end
      local life = -1
      if ends then life = ends - ms end
      now = now + (real.call('LPOP', 'held') or 0)
      ms = math.floor(now / 1000)
      return life
    end,
    SET = function(key, value, px, ends, condition)
      if px ~= 'PXAT' or integer(ends) + 0 <= 0 then error('SET without an end') end
      if type(value) == 'number' then value = integer(value) end
      if condition and (condition == 'XX') ~= (get(key) and true or false) then return false end
      if ms > ends + 0 then
        real.call('DEL', key)
      else
        real.call('HSET', key, 'value', value, 'ends', integer(ends))
      end
      return {ok = 'OK'}
    end,
    INCRBY = function(key, n)
      local value = get(key)
      if not value then error('INCRBY of no key') end
      return real.call('HINCRBY', key, 'value', integer(n))
    end,
    DEL = function(...) return real.call('DEL', ...) end,
    -- The hash with holds is one. Its end is beside it.
    HGETALL = function(key)
      local ends = real.call('GET', key .. ':ends')
      if ends and ms > ends + 0 then real.call('DEL', key) end
      return real.call('HGETALL', key)
    end,
    HSET = function(key, field, value) return real.call('HSET', key, field, value) end,
    HDEL = function(...) return real.call('HDEL', ...) end,
    PEXPIREAT = function(key, ends) return real.call('SET', key .. ':ends', integer(ends)) end,
  }
  local function call(name, ...) return commands[name](...) end
  local function try(...)
    local done, result = pcall(call, ...)
    if done then return result end
    return {err = tostring(result)}
  end
  return {call = call, pcall = try, error_reply = real.error_reply}
end)(redis)

