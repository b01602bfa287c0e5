-- Takes ARGV[1] units for each of ARGV[2] callers, one after the other, as far as they
-- fit.
--
-- Returns the time, how many callers were admitted, and for each limit its state before
-- the first of them: what each caller is to be told follows from that.

learn(3)
local raw, life, now = read()
local reply = {now}
local none = taking(0, ARGV[1] + 0, ARGV[2] + 0, raw, life, now, reply)
if none then return junk(none) end
return reply
