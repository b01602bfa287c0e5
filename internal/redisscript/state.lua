-- Takes of one sliding window or bucket each, by the shortest way. The arithmetic is that of
-- lib.lua, without what only clocks set back and the largest numbers need: the general way has
-- that. Nothing is written for a take before all of it is known.

if single and ARGV[1] ~= 'f' then
  local call, pcall, type, match, format, keys = redis.call, redis.pcall, type, string.match, string.format, KEYS
  local bucket, n, w, most = ARGV[1] == 'b', ARGV[2] + 0, ARGV[3] + 0, ARGV[2] + 0
  if bucket then most = ARGV[4] + 0 end
  reply = {0, 0, 0, 0} -- of the length that is usual
  for i = 1, #keys do reply[3 * i] = pcall('GET', keys[i]) end
  local time = call('TIME')
  now = time[1] * 1000000 + time[2]
  reply[1] = now
  last = 1 + 3 * #keys
  local exact, number, numbers = 9007199254740992, '%d', '%d %d %d'
  if format(number, exact) ~= '9007199254740992' then
    number, numbers = '%.0f', '%.0f %.0f %.0f' -- as in lib.lua
  end
  local named, at = (following or 0) + 0, rest
  for i = 1, #keys do
    local raw, cost, callers = reply[3 * i], 1, 1
    if i == named then
      cost, callers, at = ARGV[at + 1] + 0, ARGV[at + 2] + 0, at + 3
      named = (ARGV[at] or 0) + 0
    end
    local t, a, b, done = now, 0, 0, not raw
    if type(raw) == 'string' then
      t, a, b = match(raw, '^(%d+) (%d+) (%d+)$')
      if t and #t <= 16 and #a <= 15 and #b <= 16 then
        t, a, b = t + 0, a + 0, b + 0
        done = t <= now
      end
    end

    local left
    if done and bucket then
      local product = n * (now - t)
      done = product < exact
      local part = product % w
      t, a, b = now, a - (product - part) / w, b - part
      if b < 0 then a, b = a - 1, b + w end
      if a < 0 then a, b = 0, 0 end
      left = most - a
      if b > 0 then left = left - 1 end
    elseif done then
      local elapsed = now - t
      if elapsed >= w then
        b = a -- first: gopher-lua sets a variable of many before it reads the next
        t, a, elapsed = t + w, 0, elapsed - w
      end
      local product = 0
      if elapsed < w then product = b * (w - elapsed) end
      done = product < exact
      local older = (product - product % w) / w
      if a == 0 and older == 0 then t, b = now, 0 end
      left = n - a - older
    end

    local admitted, ends = callers, nil
    if done and cost > 0 then
      if cost * callers > left then
        admitted = 0
        if left > 0 then admitted = (left - left % cost) / cost end
      end
      if admitted > 0 then
        local held = a + admitted * cost
        if bucket then
          local product = held * w + b
          done = product < exact
          local over = product % n
          ends = now + (product - over) / n
          if over > 0 then ends = ends + 1 end
        else
          local over = w % held
          ends = t + w + w - (w - over) / held + 1
          if over > 0 then ends = ends - 1 end
        end
        if done then
          call('SET', keys[i], format(numbers, t, held, b), 'PXAT', format(number, (ends + -ends % 1000) / 1000))
        end
      end
    end
    if done and raw and not ends then done = call('PTTL', keys[i]) ~= -1 end

    if done then
      reply[3 * i - 1], reply[3 * i], reply[3 * i + 1] = t, a, b
      if admitted < callers then
        reply[last + 1], reply[last + 2] = i, admitted
        last = last + 2
      end
    else
      later = later or {}
      later[#later + 1] = i
    end
  end
  if not later then return reply end
end
