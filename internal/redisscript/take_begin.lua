-- Begins Take, the script that admits or denies units: it declares what the
-- files of that script share. Take is these files, joined in this order:
--
--   take_begin.lua  what the others share
--   fixed.lua       fast path: one limit, which is a fixed window
--   state.lua       fast path: one limit, which is a sliding window or a bucket
--   lib.lua         all limits, and the arithmetic of internal/rule
--   rolling.lua     logs of rolling windows; if a limit is one
--   move.lua        units that may yet be given back; if a limit has a ladder
--   ladder.lua      the blocks that denials start; if a limit has a ladder
--   take.lua        general path: every take that no fast path has decided
--
-- TakeAcross is the same with across.lua before all of it. In Take, fetched is nil.
--
-- TakeHold is the same without the fast paths, and with hold.lua after this file. It is
-- for one take of a key that has an in-flight limit beside the others.
--
-- A local of one file is visible in all files after it.
--
-- A take asks for cost units of one key for each of its callers, one caller
-- after another. With cost 0 it is a look, which always fits. The package
-- comment in script.go describes the protocol:
--
--   KEYS   for each take: a counter for each limit
--   ARGV   for each limit: what lib.lua reads
--          for each special take: number, cost, callers
--          0, upTo and pending units, if there is one take that needs them
--   reply  the server's time
--          for each take and limit: the state T, A, B before the first caller,
--            only T, A if the limit is a fixed window or a period; its log, or 0, if it
--            is a rolling window
--          for each take that has not admitted all its callers: number of the
--            take, and how many it has admitted; or -i if its key i does not
--            hold a counter, and nothing was changed for this take
--          for each block: -number of the take; i if it is of key i, or -i if
--            this take has started it; its end; its rung; its forget
--          in TakeHold, of the holds: how many have begun and ended in this
--            process, and how many others there are; until the last record of
--            the others ends, and until the first record of all does, or 0; 1
--            if there was no room for another hold, or 0
--   error  CLOCK and the server's time, if a period in force is not in ARGV;
--          nothing was changed
--
-- Takes are numbered from 1. A special take is one that is not one unit for
-- one caller; their numbers ascend. Instants and windows are in microseconds.
--
-- Expects fetched of across.lua in Take, and no locals in TakeHold. Leaves all of its own to the files after it.
--
-- Checked against internal/rule by TestScriptsFollowTheRules and FuzzScripts:
-- they run random histories on a clock of their own, here and in the rule,
-- through all of the files. The other files name more tests.

local keys = KEYS
local call = redis.call -- if the command fails, the script ends with its error
local try = redis.pcall -- if the command fails, the result is a table

local kind = ARGV[1] -- of the first limit
local startsBlocks = kind == 'F' or kind == 'S' or kind == 'B' or
  kind == 'P' or kind == 'R'
if startsBlocks then kind = string.lower(kind) end
local afterFirstLimit = 4 -- an index in ARGV
if kind == 'b' then afterFirstLimit = 5 end
if kind == 'p' then afterFirstLimit = 7 end
if startsBlocks then afterFirstLimit = afterFirstLimit + 1 end

-- Another limit, which begins with a letter, or a number: a special take or the
-- 0 after them. nil if there is none of these.
local following = ARGV[afterFirstLimit]
local oneLimit = not following or tonumber(following)

-- A fast path sets these if it runs. The general path goes on with them.
local now         -- the server's time
local reply       -- what the script returns
local replyLength -- how many numbers the reply has
local undecided   -- the numbers of the takes that are left to the general path;
                  -- nil if there are none

-- hold.lua sets these in TakeHold. They are nil in Take.
local readHolds, applyHolds, holdRoom, holdAction
