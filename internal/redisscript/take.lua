-- The general path of Take: all takes under several limits, and the takes under
-- one limit that a fast path has left undecided. A caller gets its units under
-- all limits, or under none.
--
-- The last file of Take: take_begin.lua lists the files and the reply.
--
--   KEYS   for each take: a counter for each limit
--   ARGV   for each limit: what lib.lua reads
--          for each special take: number, cost, callers
--
-- Expects the locals of take_begin.lua and lib.lua. Returns the reply.
--
-- Checked against internal/rule by TestScriptsFollowTheRules and FuzzScripts:
-- they run random histories on a clock of their own, here and in the rule, with
-- one to three limits, up to four keys and clocks that are set back. On the
-- server's clock, TestTakeFixed, TestTakeManyFixed and TestTakeManyStates have
-- what a fast path leaves undecided, such as values that are not counters and
-- keys without a time to live. TestDenialsChangeNothing shows what a denial
-- writes.

local numbersPerTake = 0 -- how many numbers of the reply are states of one take
for i = 1, limitCount do
  if kinds[i] == 'f' then
    numbersPerTake = numbersPerTake + 2
  else
    numbersPerTake = numbersPerTake + 3
  end
end

local costs, callerCounts = {}, {} -- of the special takes, by number
for arg = ownArg, #ARGV, 3 do
  local take = ARGV[arg] + 0
  costs[take], callerCounts[take] = ARGV[arg + 1] + 0, ARGV[arg + 2] + 0
end

local values, lives -- by key: its value, and its PTTL if a fixed window
if undecided then
  -- A fast path has run, so there is one limit, and take i has key i. PTTL and
  -- TIME have been read. The values are read again, because the MGET of a fast
  -- path returns false both for a missing key and for one that is not a string.
  values, lives = {}, {}
  for _, i in ipairs(undecided) do
    values[i] = readCounter(i)
    if kind == 'f' then lives[i] = reply[2 * i] end
  end
else
  undecided = {}
  for take = 1, #keys / limitCount do undecided[take] = take end
  values, lives, now = readAll()
  reply, replyLength = {now}, 1 + numbersPerTake * #undecided
end

-- decide decides a take and writes its counters. It sets the take's states in
-- reply, and returns how many callers are admitted, or -i if key i of the take
-- does not hold a counter.
local function decide(take, cost, callers)
  local firstKey = (take - 1) * limitCount -- the key of limit i is firstKey + i
  local offset = 1 + (take - 1) * numbersPerTake -- of its states in reply

  -- Nothing is written until all counters of the take are read.
  local admitted = callers
  local T, A, B, needsTTL = {}, {}, {}, {} -- by limit, from decode
  for i = 1, limitCount do
    local kind, n, w, burst = kinds[i], N[i], windows[i], bursts[i]
    local key = firstKey + i
    local t, a, b, needed = decode(kind, values[key], lives[key], w, now)
    if not t then
      for j = 1, numbersPerTake do reply[offset + j] = 0 end
      return -i
    end
    t, a, b = at(kind, t, a, b, n, w, now)
    local left = n - a
    if kind == 's' then
      left = left - older(t, b, w, now)
    elseif kind == 'b' then
      left = burst - a
      if b > 0 then left = left - 1 end -- a unit that has begun to leak
    elseif a == 0 then
      t = newWindowT(now, w)
    end
    if cost > 0 then -- a look always fits
      admitted = math.min(admitted, math.max(0, math.floor(left / cost)))
    end
    T[i], A[i], B[i], needsTTL[i] = t, a, b, needed
  end

  local taken = cost * admitted
  for i = 1, limitCount do
    local kind, n, w = kinds[i], N[i], windows[i]
    local key, t, a, b = keys[firstKey + i], T[i], A[i], B[i]
    if taken > 0 and kind == 'f' and a > 0 and not needsTTL[i] then
      -- INCRBY keeps the time to live, and so the window's end.
      call('INCRBY', key, taken)
    elseif taken > 0 or needsTTL[i] then
      write(key, kind, t, a + taken, b, n, w, now)
    elseif values[firstKey + i] and kind ~= 'f' and call('PTTL', key) == -1 then
      write(key, kind, t, a, b, n, w, now) -- to set a time to live
    end
    reply[offset + 1], reply[offset + 2] = t, a
    if kind == 'f' then
      offset = offset + 2
    else
      reply[offset + 3] = b
      offset = offset + 3
    end
  end
  return admitted
end

for _, take in ipairs(undecided) do
  local callers = callerCounts[take] or 1
  local admitted = decide(take, costs[take] or 1, callers)
  if admitted ~= callers then
    reply[replyLength + 1], reply[replyLength + 2] = take, admitted
    replyLength = replyLength + 2
  end
end
return reply
