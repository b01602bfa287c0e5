-- Begins TakeAcross, which is Take for keys of different slots of a Cluster. The
-- server does not know that they are keys: it would refuse a command that
-- declares keys of several slots. But it checks each key that a script uses, as
-- if that were a command of its own, and refuses a key that is not here. That may be
-- so of any key: this server may have lost the slot, or its place as the master,
-- and while a slot moves, a key without a counter here may have one at the new
-- master.
--
-- So this file reads all keys before anything is written. If the server refuses
-- one, the script does nothing. If it allows all of them, it allows them until
-- the script ends, because nothing moves while a script runs.
--
-- The first key is read twice because of Redis 7.4 and later, and Valkey 8. While
-- a slot moves, they look for its keys in the slot that the script has used last.
-- So they refuse a key that is here, unless the script has used no key yet, or
-- one of the same slot. The first key could pass now and be refused when others
-- are written. With the second time, keys pass only if none is of a moving slot,
-- or all are of one slot, and then all later commands pass, too.
--
--   KEYS   none
--   ARGV   the number of keys, the keys, and the rest as for Take
--   reply  as of Take
--   error  ELSEWHERE, the numbers of the keys that the server has refused, a colon,
--          and the server's text for the first of them; nothing was changed
--
-- Expects fetched, and sets it to the values of the keys, as MGET returns them.
-- Leaves KEYS and ARGV to the files after it, as Take has them.
--
-- Checked by TestScriptsFollowTheRules, as Take is, by TestTakeAcrossMovingSlots
-- with a model of the servers, and on servers by redis_across_test.go of
-- internal/e2e.

local KEYS, ARGV = {unpack(ARGV, 2, ARGV[1] + 1)}, {unpack(ARGV, ARGV[1] + 2)}
fetched = {}
do
  local try, elsewhere, why = redis.pcall, nil, nil
  for i = 1, #KEYS + 1 do
    local key = i > #KEYS and 1 or i
    local value = try('GET', KEYS[key])
    if type(value) == 'table' then
      if not string.find(value.err, 'WRONGTYPE') then
        elsewhere, why = elsewhere or {}, why or value.err
        elsewhere[#elsewhere + 1] = key
      end
      value = false
    end
    fetched[key] = value
  end
  if elsewhere then
    return redis.error_reply('ELSEWHERE ' .. table.concat(elsewhere, ' ') .. ': ' .. why)
  end
end
