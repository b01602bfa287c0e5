-- The holds of one key under an in-flight limit, which allows some number of them at the
-- same time, over all processes. Holds of internal/rule explains them.
--
-- The second file of TakeHold, after take_begin.lua, and the first one of Hold. The last key and
-- the last arguments of both scripts are for this file, which removes them:
--
--   KEYS   a hash, with a field for each process that has holds:
--            began ended until lasts
--   ARGV   action (look, add or renew), most, lasts, process, began, ended, and 1
--            or 0: whether no other call of the process about the key is under way
--   reply  is up to the files that follow
--
-- Instants and spans are in microseconds. Expects that these are declared, and sets them for the
-- files after it:
--
--   holdAction   the action
--   readHolds    reads the hash; returns an error if it holds anything else
--   holdRoom     how many holds may begin, after readHolds
--   applyHolds   begins some holds, writes the hash, and returns what take_begin.lua lists
--
-- Checked against Apply of internal/rule by TestHoldsFollowTheRule.

local holdKey = table.remove(KEYS)
local holdAlone = table.remove(ARGV) == '1'
local holdEnded = table.remove(ARGV) + 0
local holdBegan = table.remove(ARGV) + 0
local holdProcess = table.remove(ARGV)
local holdLasts = table.remove(ARGV) + 0
local holdMost = table.remove(ARGV) + 0
holdAction = table.remove(ARGV)

local holdNow, holdOwn, holdStored
local holdOver, holdAhead -- processes whose records have ended, and records to write because the clock was set back
local holdOthers, holdLatest, holdSoonest, holdKept -- of the others; Kept is until the last record ends, also without holds

readHolds = function(now)
  local fields = redis.pcall('HGETALL', holdKey)
  if fields.err then
    if string.find(fields.err, 'WRONGTYPE') then return redis.error_reply('JUNK 0') end
    redis.call('HGETALL', holdKey) -- fails again, and ends the script
  end
  holdNow, holdOver, holdAhead = now, {}, {}
  holdOthers, holdLatest, holdSoonest, holdKept = 0, 0, 0, 0
  for i = 1, #fields, 2 do
    local began, ended, ends, lasts = string.match(fields[i + 1], '^(%d+) (%d+) (%d+) (%d+)$')
    if not began or #began > 15 or #ended > 15 or #ends > 16 or #lasts > 16 then
      return redis.error_reply('JUNK 0')
    end
    began, ended, ends, lasts = began + 0, ended + 0, ends + 0, lasts + 0
    local left = math.min(ends - now, lasts)
    if left <= 0 then
      holdOver[#holdOver + 1] = fields[i]
    elseif fields[i] == holdProcess then
      holdStored = {began = began, ended = ended, ends = ends, lasts = lasts, left = left}
    else
      holdKept = math.max(holdKept, left)
      if ends - now > lasts then
        holdAhead[#holdAhead + 1] = fields[i]
        holdAhead[#holdAhead + 1] = string.format('%.0f %.0f %.0f %.0f', began, ended, now + lasts, lasts)
      end
      if began > ended then
        holdOthers = holdOthers + began - ended
        holdLatest = math.max(holdLatest, left)
        if holdSoonest == 0 or left < holdSoonest then holdSoonest = left end
      end
    end
  end
  local own = {began = holdBegan, ended = holdEnded}
  if holdStored then
    own.began, own.ended = math.max(own.began, holdStored.began), math.max(own.ended, holdStored.ended)
    own.ends, own.lasts, own.left = now + holdStored.left, holdStored.lasts, holdStored.left
  end
  own.began = math.max(own.began, own.ended)
  holdOwn = own
  holdRoom = holdMost - holdOthers - (own.began - own.ended)
end

-- applyHolds begins some holds. Denied means that there was no room for one.
applyHolds = function(begun, denied)
  local own, stored = holdOwn, holdStored
  own.began = own.began + begun
  local renews = begun > 0 or holdAction == 'renew' or not stored
  if renews then
    own.left = math.max(holdLasts, stored and stored.left or 0)
    own.ends, own.lasts = holdNow + own.left, own.left
  end
  local held = own.began - own.ended
  local changed = not stored or renews or own.began ~= stored.began or own.ended ~= stored.ended or own.ends ~= stored.ends
  local deletes = stored and held == 0 and holdAlone
  if holdAction ~= 'look' and (changed and (held > 0 or stored) or deletes or #holdAhead > 0) then
    for i = 1, #holdAhead, 2 do redis.call('HSET', holdKey, holdAhead[i], holdAhead[i + 1]) end
    if #holdOver > 0 then redis.call('HDEL', holdKey, unpack(holdOver, 1, math.min(#holdOver, 4096))) end
    local latest = holdKept
    if held > 0 or stored and not deletes then
      redis.call('HSET', holdKey, holdProcess, string.format('%.0f %.0f %.0f %.0f', own.began, own.ended, own.ends, own.lasts))
      latest = math.max(latest, own.left)
    else
      redis.call('HDEL', holdKey, holdProcess)
    end
    redis.call('PEXPIREAT', holdKey, string.format('%.0f', math.ceil((holdNow + latest) / 1000)))
  end
  local soonest = holdSoonest
  if held > 0 and (soonest == 0 or own.left < soonest) then soonest = own.left end
  return {own.began, own.ended, holdOthers, holdLatest, soonest, denied and 1 or 0}
end
