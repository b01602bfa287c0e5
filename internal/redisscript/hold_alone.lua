-- Hold asks for a hold, or reports on holds, of one key whose only limit is an in-flight limit.
--
-- Hold is hold.lua and then this file. The package comment in script.go describes the protocol.
--
--   KEYS ARGV   what hold.lua takes
--   reply       the server's time, and the six numbers of applyHolds
--   error       JUNK 0, if the key holds anything but holds; nothing was changed
--
-- Expects the locals of hold.lua. Returns the reply.
--
-- Checked against Apply of internal/rule by TestHoldsFollowTheRule.

local time = redis.call('TIME')
local wrong = readHolds(time[1] * 1000000 + time[2])
if wrong then return wrong end
local begun, denied = 0, false
if holdAction == 'add' then
  if holdRoom >= 1 then begun = 1 else denied = true end
end
return {holdNow, unpack(applyHolds(begun, denied))}
