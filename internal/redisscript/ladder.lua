-- What takes under limits with a ladder need: whether a denial starts a block,
-- and which.
--
-- Take has move.lua and this file between "if ladders then" and "end".
-- Making a function takes the server time, and other takes need none of these.
-- take_begin.lua lists the files.
--
--   KEYS ARGV reply   what take_begin.lua lists
--
-- Expects the locals of take_begin.lua, lib.lua and move.lua. Sets
-- deniesWithout and start for take.lua.
--
-- Checked against internal/rule by TestScriptsFollowTheRules and FuzzScripts:
-- they run random histories on a clock of their own, here and in the rule.

-- wait returns how long it takes until cost units fit into a state, which is at
-- now and has too little room. cost is at most what the limit can hold.
local function wait(kind, t, a, b, n, w, burst, now, cost)
  if kind == 'f' then return t + w - now end
  if kind == 'p' then return t - now end
  if kind == 'r' then return unit(b, a + cost - n) + w - now end
  if kind == 's' then
    local room, units = n - a - cost, b
    local window = t -- of which the units are the window before
    if room < 0 then room, units, window = n - cost, a, t + w end
    local quotient, remainder = muldiv(room + 1, w, units)
    if remainder > 0 then quotient = quotient + 1 end
    return window + w - quotient + 1 - now -- see weighsAtMost
  end
  local span, remainder = muldiv(a + cost - burst, w, n)
  return math.max(0, t - now) + span + ceildiv(remainder + b, n)
end

-- deniesWithout reports whether cost units are denied by limit i in a state even
-- if all pending units, in ARGV from firstPending on, are given back.
-- DeniesWithout of internal/rule explains what a bucket gets back.
deniesWithout = function(i, t, a, b, cost, firstPending)
  local kind, n, w, burst = kinds[i], N[i], windows[i], bursts[i]
  local refill = 0
  if kind == 'b' then
    local span, remainder = muldiv(burst, w, n)
    refill = span + ceildiv(remainder, n)
  end
  for arg = firstPending, #ARGV, 2 do
    local taken = tonumber(ARGV[arg + 1]) or math.huge
    if kind == 'r' then
      if taken > now - w then a = math.max(0, a - ARGV[arg]) end
    elseif kind ~= 'b' then
      t, a, b = move(kind, t, a, b, n, w, burst, now, -ARGV[arg], taken)
    elseif now - taken < refill then
      a, b = drain(a, b, ARGV[arg] + 0, 0, w)
    end
  end
  return left(kind, t, a, b, n, w, burst, now) < cost
end

-- start returns the block that a denial of cost units starts under limit i, after
-- block, which is nil or over. It follows Start of internal/rule. maxBlockEnd is
-- more than a century away. Its sum with a forget, less than 2^51, is exact.
local maxBlockEnd = 6755399441055744 -- 2^52 + 2^51
start = function(i, t, a, b, cost, block)
  local rung = block and block.rung or 0
  local lasts, longest, number = 0, 0, 0
  for duration in string.gmatch(ladders[i], '%d+') do
    longest = tonumber(duration)
    if number <= rung then lasts = longest end -- the last one is for all further rungs
    number = number + 1
  end
  local w = windows[i]
  lasts = math.max(lasts, wait(kinds[i], t, a, b, N[i], w, bursts[i], now, cost))
  local ends = math.min(now + lasts, maxBlockEnd)
  return {ends = ends, lasts = ends - now, rung = math.min(rung + 1, 4), forget = math.max(longest, w)}
end
