-- A take of one fixed window, which is most takes, by the shortest way: what is out
-- of the ordinary falls through to the general one below. See take.lua.

if #KEYS == 1 and ARGV[3] == 'f' then
  local call, key, cost, callers, n, w = redis.call, KEYS[1], ARGV[1] + 0, ARGV[2] + 0, ARGV[4] + 0, ARGV[5] + 0
  local count, life = redis.pcall('GET', key), nil
  if count then life = call('PTTL', key) end
  local time = call('TIME')
  local now = time[1] * 1000000 + time[2]
  local admitted = callers
  if not count then
    local ends = math.ceil((now + w) / 1000)
    if cost > 0 then
      admitted = math.min(callers, math.floor(n / cost))
      if admitted > 0 then
        call('SET', key, string.format('%.0f', admitted * cost), 'PXAT', string.format('%.0f', ends))
      end
    end
    return {now, admitted, ends * 1000 - w, 0, 0}
  end
  if life > 0 and life * 1000 <= 2 * w and type(count) == 'string' and #count <= 15 and string.find(count, '^%d+$') then
    count = count + 0
    if cost > 0 then
      local left = n - count
      if callers == 1 then
        if cost <= left then call('INCRBY', key, ARGV[1]) else admitted = 0 end -- which keeps its time to live
      else
        admitted = math.max(0, math.min(callers, math.floor(left / cost)))
        if admitted > 0 then call('INCRBY', key, string.format('%.0f', admitted * cost)) end
      end
    end
    return {now, admitted, now - now % 1000 + life * 1000 - w, count, 0}
  end
end
