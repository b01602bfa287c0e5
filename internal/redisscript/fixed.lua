-- Takes of one fixed window each, which are most, by the shortest way. What is out of the
-- ordinary is left to the general way, which take.lua has, as are the arguments and the reply.

local reply, last, later, now
local rest = ARGV[1] == 'b' and 5 or 4 -- the first argument after those of one limit
local following = ARGV[rest]
local single = following ~= 'f' and following ~= 's' and following ~= 'b'

if single and ARGV[1] == 'f' then
  local call, pcall, type, tonumber, keys = redis.call, redis.pcall, type, tonumber, KEYS
  local n, w = ARGV[2] + 0, ARGV[3] + 0
  -- All is read before anything is written, and TIME comes after PTTL: see lib.lua.
  reply = {0, 0, 0} -- of the length that is usual
  local counts = call('MGET', unpack(keys))
  for i = 1, #keys do reply[2 * i] = call('PTTL', keys[i]) end
  local time = call('TIME')
  now = time[1] * 1000000 + time[2]
  reply[1] = now
  last = 1 + 2 * #keys
  local began, longest = now - now % 1000 - w, w / 500
  local opens, ends -- of a window that is opened now
  local named, at = (following or 0) + 0, rest
  for i = 1, #keys do
    local key, life, cost, taken, units, done = keys[i], reply[2 * i], 1, 1, '1', false
    if i == named then
      cost = ARGV[at + 1] + 0
      taken = cost * ARGV[at + 2]
      units, at = taken, at + 3
      named = (ARGV[at] or 0) + 0
    end
    local count = counts[i]
    if taken == 0 or taken > n then
      -- a look, or not for all callers
    elseif count and life > 0 and life <= longest then
      local before = tonumber(count) or 0
      if before > 0 and before < 1e15 then
        local left = n - before
        if taken <= left then
          done = type(pcall('INCRBY', key, units)) == 'number' -- which keeps its time to live
        else
          local fit = 0
          if left > 0 then fit = left - left % cost end
          if fit > 0 then
            done = type(pcall('INCRBY', key, fit)) == 'number'
          else
            done = string.find(count, '^[1-9]%d*$')
          end
          if done then
            reply[last + 1], reply[last + 2] = i, fit / cost
            last = last + 2
          end
        end
        if done then reply[2 * i], reply[2 * i + 1] = began + life * 1000, before end
      end
    elseif life == -2 then
      if not ends then
        opens = now + -(now + w) % 1000
        ends = string.format('%.0f', (opens + w) / 1000)
      end
      call('SET', key, units, 'PXAT', ends)
      reply[2 * i], reply[2 * i + 1], done = opens, 0, true
    end
    if not done then
      later = later or {}
      later[#later + 1] = i
    end
  end
  if not later then return reply end
end
