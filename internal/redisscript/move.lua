-- Moves units of a counter that were taken earlier, for Adjust, and for a take
-- that may start a block.
--
-- The second file of Adjust, after lib.lua. In Take it is within an if, with
-- ladder.lua: take_begin.lua lists the files.
--
--   KEYS ARGV reply   up to the file that follows
--
-- Expects the locals of lib.lua. Leaves move to the files after it.
--
-- Checked against internal/rule by TestScriptsFollowTheRules and FuzzScripts:
-- they run random histories on a clock of their own, here and in the rule.

-- shift moves a window's count by some units, between zero and the limit. A
-- count that is already above the limit, because the limit was lowered, stays.
local function shift(count, units, n)
  if units < 0 then return math.max(0, count + units) end
  return math.max(count, math.min(count + units, n))
end

-- move returns a state with some units moved that were taken at an instant, as
-- Adjust of internal/rule does: less than 0 gives them back, more than 0 charges
-- them. An instant in the future, such as math.huge, means now. The state must be
-- at now, and so is the one returned.
local function move(kind, t, a, b, n, w, burst, now, units, taken)
  if units == 0 or (units < 0 and fresh(a, b)) then return t, a, b end
  if kind == 'r' then return moveLog(t, a, b, n, w, now, units, taken) end
  local age = math.max(0, now - taken)
  if kind == 'p' then
    taken = now - age
    if taken < math.min(t, burst) - w or units < 0 and taken >= t then return t, a, b end
    return t, shift(a, units, n), 0
  end
  local elapsed = math.max(0, now - t)
  if kind == 'b' then
    -- Units leak in the order they came. whole and part are how much of these
    -- units has not leaked yet.
    local _, whole, part = at(kind, now - age, math.abs(units), 0, n, w, burst, now)
    if units < 0 then
      a, b = drain(a, b, whole, part, w)
    elseif a < burst then
      a, b = a + whole, b + part
      if b >= w then a, b = a + 1, b - w end
      if a >= burst then a, b = burst, 0 end
    end
  elseif fresh(a, b) then
    t, a, b = at(kind, now - age, math.min(units, n), 0, n, w, burst, now)
    if kind == 'f' and a > 0 then t = newWindowT(t, w) end
  elseif age <= elapsed then
    a = shift(a, units, n) -- they were taken in this window
  elseif kind == 'f' and (age <= elapsed + 2000 or units > 0 and age < w) then
    -- A fixed window can seem to have opened up to two milliseconds late: one
    -- from the rounding of its end, and one that may have begun between PTTL
    -- and TIME. Units to charge that are older than the window, but younger
    -- than its length, would have opened a window that is still open.
    a = shift(a, units, n)
  elseif kind == 's' and age - elapsed <= w then
    b = shift(b, units, n) -- they were taken in the window before
  end
  return at(kind, t, a, b, n, w, burst, now) -- fresh, if the units left weigh nothing
end
