-- The general path of Take: all takes under several limits, and the takes under
-- one limit that a fast path has left undecided. A caller gets its units under
-- all limits, or under none.
--
-- The last file of Take: take_begin.lua lists the files and the reply.
--
--   KEYS   for each take: a counter for each limit
--   ARGV   what take_begin.lua lists
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
  if kinds[i] == 'r' then
    numbersPerTake = numbersPerTake + 1 -- a string
  elseif kinds[i] == 'f' or kinds[i] == 'p' then
    numbersPerTake = numbersPerTake + 2
  else
    numbersPerTake = numbersPerTake + 3
  end
end

local costs, callerCounts = {}, {} -- of the special takes, by number
local arg = ownArg
while ARGV[arg] and ARGV[arg] ~= '0' do
  local take = ARGV[arg] + 0
  costs[take], callerCounts[take] = ARGV[arg + 1] + 0, ARGV[arg + 2] + 0
  arg = arg + 3
end

-- After a 0: whether the callers are the units of one caller who wants as many
-- as fit, and the units of the key that may yet be given back, in pairs of units
-- and when they were taken, or "now".
local upTo, firstPending = ARGV[arg] and ARGV[arg + 1] == '1', arg + 2

local values, lives -- by key: its value, and its PTTL if a fixed window
if undecided then
  -- A fast path has run, so there is one limit, and take i has key i. PTTL and
  -- TIME have been read. The values are read again, because the MGET of a fast
  -- path returns false both for a missing key and for one that is not a string.
  if periods then setPeriods(now) end
  values, lives = {}, {}
  for _, i in ipairs(undecided) do
    values[i] = readCounter(i)
    if kind == 'f' or kind == 'p' then lives[i] = reply[2 * i] end
  end
else
  undecided = {}
  for take = 1, #keys / limitCount do undecided[take] = take end
  local wrong
  values, lives, now, wrong = readAll()
  if wrong then return wrong end
  wrong = readHolds and readHolds(now)
  if wrong then return wrong end
  reply, replyLength = {now}, 1 + numbersPerTake * #undecided
end

-- decide decides a take and writes its counters. It sets the take's states in
-- reply, and returns how many callers are admitted, or -i if key i of the take
-- does not hold a counter. It also returns the blocks of the limits, and which
-- of them have begun now.
local function decide(take, cost, callers)
  local firstKey = (take - 1) * limitCount -- the key of limit i is firstKey + i
  local offset = 1 + (take - 1) * numbersPerTake -- of its states in reply

  -- Nothing is written until all counters of the take are read.
  local admitted = callers
  local T, A, B, mustWrite = {}, {}, {}, {} -- by limit
  local blocks, began -- by limit; nil without any
  local blocked, tooDear = false, false -- a block is in force; one limit can never hold the cost
  for i = 1, limitCount do
    local kind, n, w, burst = kinds[i], N[i], windows[i], bursts[i]
    local key = firstKey + i
    local t, a, b, needed, block = decode(kind, values[key], lives[key], w, burst, now)
    if not t then
      for j = 1, numbersPerTake do reply[offset + j] = 0 end
      return -i
    end
    t, a, b = at(kind, t, a, b, n, w, burst, now)
    if kind == 'f' and a == 0 then t = newWindowT(now, w) end
    if cost > 0 then -- a look always fits
      local left = left(kind, t, a, b, n, w, burst, now)
      admitted = math.min(admitted, math.max(0, math.floor(left / cost)))
      tooDear = tooDear or cost > (kind == 'b' and burst or n)
    end
    if block then
      blocks = blocks or {}
      blocks[i], blocked = block, blocked or block.ends > now
    end
    T[i], A[i], B[i], mustWrite[i] = t, a, b, needed
  end

  if holdAction == 'add' then admitted = math.min(admitted, math.max(0, holdRoom)) end
  if blocked and cost > 0 then
    admitted = 0
  elseif start and admitted < callers and not tooDear and not (upTo and admitted > 0) then
    -- The caller after the last one that is admitted is denied. The limits that
    -- deny it block the key, and so the callers after it.
    for i = 1, limitCount do
      local t, a, b = T[i], A[i] + cost * admitted, B[i]
      if kinds[i] == 'r' and admitted > 0 then t, a, b = insert(t, A[i], b, now, cost * admitted) end
      if ladders[i] and left(kinds[i], t, a, b, N[i], windows[i], bursts[i], now) < cost and deniesWithout(i, t, a, b, cost, firstPending) then
        blocks, began = blocks or {}, began or {}
        blocks[i], began[i] = start(i, t, a, b, cost, blocks[i]), true
      end
    end
  end

  local taken = cost * admitted
  for i = 1, limitCount do
    local kind, n, w = kinds[i], N[i], windows[i]
    local key, t, a, b = keys[firstKey + i], T[i], A[i], B[i]
    local value, block = values[firstKey + i], blocks and blocks[i]
    local begun = began and began[i]
    local isCount = kind == 'f' or kind == 'p'
    if taken > 0 and isCount and a > 0 and not (mustWrite[i] or begun) and tonumber(value) then
      -- INCRBY keeps the time to live, and so the window's end. The value is not a
      -- number if it has a block, perhaps a forgotten one.
      call('INCRBY', key, taken)
    elseif kind == 'r' and taken > 0 then
      local youngest, units, log = insert(t, a, b, now, taken)
      write(key, kind, youngest, units, log, n, w, now, block)
    elseif taken > 0 or mustWrite[i] or begun then
      write(key, kind, t, a + taken, b, n, w, now, block)
    elseif value and not isCount and call('PTTL', key) == -1 then
      write(key, kind, t, a, b, n, w, now, block) -- to set a time to live
    end
    if kind == 'r' then
      reply[offset + 1] = b
      offset = offset + 1
    else
      reply[offset + 1], reply[offset + 2] = t, a
      offset = offset + 2
      if not isCount then
        reply[offset + 1] = b
        offset = offset + 1
      end
    end
  end
  return admitted, blocks, began
end

for _, take in ipairs(undecided) do
  local callers = callerCounts[take] or 1
  local admitted, blocks, began = decide(take, costs[take] or 1, callers)
  if admitted ~= callers then
    reply[replyLength + 1], reply[replyLength + 2] = take, admitted
    replyLength = replyLength + 2
  end
  for i = 1, blocks and limitCount or 0 do
    local block = blocks[i]
    if block then
      reply[replyLength + 1], reply[replyLength + 2] = -take, began and began[i] and -i or i
      reply[replyLength + 3], reply[replyLength + 4] = block.ends, block.rung
      reply[replyLength + 5] = block.forget
      replyLength = replyLength + 5
    end
  end
  if readHolds and admitted >= 0 then
    local begun = holdAction == 'add' and admitted or 0
    for _, number in ipairs(applyHolds(begun, holdAction == 'add' and holdRoom < 1)) do
      replyLength = replyLength + 1
      reply[replyLength] = number
    end
  end
end
return reply
