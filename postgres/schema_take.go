package postgres

import (
	"fmt"
	"strings"
)

// This file writes the functions take_*, one for each combination of up to
// maxColumns limits of the kinds below. Each is one UPDATE whose WHERE is the look: a call
// that does not fit finds no row to update. So it takes no transaction id and writes nothing.
// The arithmetic is the one of package internal/rule, in SQL. What a function cannot decide
// it leaves to the caller: see the codes of its result in fast.go.
//
// No table is joined with the updated one. With a join, a plan that was made while the table
// was tiny may look at all rows once it has grown. With key = ANY (keys) on the only index,
// and with the other ways to scan a table switched off, there is one plan.
//
// Rows are locked in the order of the index, which is the order of the keys, so that no two
// calls wait for each other. Rows are only inserted if none was updated, for the same reason.

// maxColumns is how many counters of a row have columns.
const maxColumns = 3

// A kindSQL is what the function take_* needs for a limit of a kind. In the text, # is the
// number of the limit and COST is how many units a caller takes. c is the row as it is, and
// v_now is the server's time. The parameters n#, s#, u# and w# are N, the window, the burst
// and how long units count, or the end of the period of a calendar.
type kindSQL struct {
	letter  byte
	fits    string // whether COST units fit
	brought string // columns with what the next step needs
	state   string // columns with the state at v_now, or what the last step makes it of
	columns string // columns with the state at v_now, from the state
	left    string // units that fit
	ends    string // from when on the counter need not be kept, given its columns
	cap     string // units that fit at most
	opens   string // t of a new counter
	hasB    bool   // b is used
}

// The kinds in the order in which they come in the name of a function.
var kindsSQL = []kindSQL{{
	letter: 'c',
	fits: `COST <= n# - CASE WHEN c.a# = 0 THEN 0
        WHEN c.t# <= v_now THEN CASE WHEN w# - c.t# >= s# / 2 THEN 0 ELSE n# END
        WHEN c.t# - w# <= s# THEN c.a# ELSE n# END`,
	state:   `CASE WHEN c.a# = 0 OR c.t# <= v_now THEN w# ELSE c.t# END AS t#, CASE WHEN c.a# = 0 OR c.t# <= v_now THEN 0 ELSE c.a# END AS a#`,
	columns: `r.t#, r.a#`,
	left:    `n# - r.a#`,
	ends:    `t#`, cap: `n#`, opens: `w#`,
}, {
	letter:  'f',
	fits:    `c.t# - v_now <= s# AND COST <= n# - CASE WHEN v_now - c.t# >= s# THEN 0 ELSE c.a# END`,
	state:   `CASE WHEN c.a# = 0 OR v_now - c.t# >= s# THEN v_now ELSE c.t# END AS t#, CASE WHEN v_now - c.t# >= s# THEN 0 ELSE c.a# END AS a#`,
	columns: `r.t#, r.a#`,
	left:    `n# - r.a#`,
	ends:    `t# + s#`, cap: `n#`, opens: `v_now`,
}, {
	letter: 's',
	fits: `c.t# - v_now <= s# AND COST <= n# - CASE WHEN v_now - c.t# >= 2 * s# THEN 0
        WHEN v_now - c.t# >= s# THEN CASE WHEN c.a# <= 9223372036854775807 / s# THEN c.a# * (2 * s# - (v_now - c.t#)) / s#
          ELSE div(c.a#::numeric * (2 * s# - (v_now - c.t#)), s#)::bigint END
        ELSE c.a# + CASE WHEN c.b# <= 9223372036854775807 / s# THEN c.b# * (s# - greatest(v_now - c.t#, 0)) / s#
          ELSE div(c.b#::numeric * (s# - greatest(v_now - c.t#, 0)), s#)::bigint END END`,
	brought: `CASE WHEN c.a# = 0 AND c.b# = 0 OR v_now - c.t# >= 2 * s# THEN v_now WHEN v_now - c.t# >= s# THEN c.t# + s# ELSE c.t# END AS t#,
            CASE WHEN v_now - c.t# >= s# THEN 0 ELSE c.a# END AS a#,
            CASE WHEN v_now - c.t# >= 2 * s# THEN 0 WHEN v_now - c.t# >= s# THEN c.a# ELSE c.b# END AS b#`,
	state: `CASE WHEN q.b# <= 9223372036854775807 / s# THEN q.b# * (s# - greatest(v_now - q.t#, 0)) / s#
            ELSE div(q.b#::numeric * (s# - greatest(v_now - q.t#, 0)), s#)::bigint END AS older#`,
	columns: `CASE WHEN r.a# = 0 AND r.older# = 0 THEN v_now ELSE r.t# END AS t#, r.a#, CASE WHEN r.a# = 0 AND r.older# = 0 THEN 0 ELSE r.b# END AS b#`,
	left:    `n# - r.a# - r.older#`,
	ends:    `t# + 2 * s#`, cap: `n#`, opens: `v_now`, hasB: true,
}, {
	// (a + COST - u) units and b parts of a unit must have leaked. ends is rounded up to 4.3
	// seconds, so that most calls leave it as it is and need not log it.
	letter: 'b',
	fits: `c.t# - v_now <= s# AND COST <= u# AND CASE WHEN c.a# + COST < u# THEN true
        WHEN c.t# >= v_now THEN c.a# + COST = u# AND c.b# = 0
        WHEN v_now - c.t# <= 9223372036854775807 / n# AND c.a# + COST - u# < 9223372036854775807 / s#
          THEN (c.a# + COST - u#) * s# + c.b# <= n# * (v_now - c.t#)
        ELSE (c.a# + COST - u#)::numeric * s# + c.b# <= n#::numeric * (v_now - c.t#) END`,
	brought: `CASE WHEN c.t# >= v_now THEN 0 WHEN v_now - c.t# <= 9223372036854775807 / n# THEN n# * (v_now - c.t#) / s#
              ELSE least(div(n#::numeric * (v_now - c.t#), s#), 4000000000000000000)::bigint END AS w#,
            CASE WHEN c.t# >= v_now THEN 0 WHEN v_now - c.t# <= 9223372036854775807 / n# THEN n# * (v_now - c.t#) % s#
              ELSE mod(n#::numeric * (v_now - c.t#), s#)::bigint END AS p#`,
	state: `CASE WHEN c.a# = 0 AND c.b# = 0 THEN v_now ELSE greatest(c.t#, v_now) END AS t#,
            greatest(c.a# - q.w# - (c.b# < q.p#)::int, 0) AS a#,
            CASE WHEN c.a# - q.w# - (c.b# < q.p#)::int < 0 THEN 0 WHEN c.b# < q.p# THEN c.b# - q.p# + s# ELSE c.b# - q.p# END AS b#`,
	columns: `r.t#, r.a#, r.b#`,
	left:    `u# - r.a# - (r.b# > 0)::int`,
	ends:    `t# + w# | 4294967295`, cap: `u#`, opens: `v_now`, hasB: true,
}}

// takeSQL is the function for the kinds of its name. The parts in braces are written by
// takeFunction.
const takeSQL = `
CREATE OR REPLACE FUNCTION ratelimit.take_{name}(p_shape int, p_keys text[], p_cost bigint, p_costs bigint[], p_callers int[],
  p_async bool, p_begin bigint, p_end bigint, {parameters},
  OUT r_now bigint, OUT r_o int[], OUT r_g int[], {out})
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET jit = off SET lock_timeout = '1s'
  SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
#variable_conflict use_column
DECLARE
  v_now bigint := ratelimit.now();
  v_new int[];
  v_held bool;
BEGIN
  r_now := v_now;
  {period}
  IF p_async THEN PERFORM set_config('synchronous_commit', 'off', true); END IF;
  WITH u AS (
    UPDATE ratelimit.counter c SET ({columns}, ends, g) = (
      SELECT {set}, greatest(c.ends, {ends}), y.g
      FROM (SELECT r.cost, {state}, least(r.callers, {left})::int AS g
        FROM (SELECT q.*, {brought}
          FROM (SELECT CASE WHEN p_costs IS NULL THEN p_cost ELSE p_costs[p.i] END AS cost,
              CASE WHEN p_callers IS NULL THEN 1 ELSE p_callers[p.i] END AS callers{first}
            FROM (SELECT CASE WHEN p_costs IS NULL AND p_callers IS NULL THEN 1 ELSE width_bucket(c.key, p_keys) END AS i OFFSET 0) p OFFSET 0) q OFFSET 0) r OFFSET 0) y)
    WHERE c.key = ANY (p_keys) AND c.shape = p_shape AND (c.until IS NULL OR c.until <= v_now) AND COST > 0
      AND {fits}
    RETURNING width_bucket(c.key, p_keys) AS o, c.g, {returning})
  SELECT array_agg(u.o), array_agg(u.g), {agg} INTO r_o, r_g, {into} FROM u;
  IF cardinality(r_o) = cardinality(p_keys) THEN RETURN; END IF;
  v_held := r_o IS NOT NULL;
  SELECT r_o || array_agg(k.o::int), r_g || array_agg(CASE WHEN c.key IS NULL THEN -1 WHEN c.shape <> p_shape OR c.until > v_now THEN -2 ELSE 0 END),
    {append}, array_agg(k.o::int) FILTER (WHERE c.key IS NULL AND {new})
  INTO r_o, r_g, {into}, v_new
  FROM unnest(p_keys) WITH ORDINALITY k(key, o)
  LEFT JOIN LATERAL (SELECT c.* FROM ratelimit.counter c WHERE c.key = k.key LIMIT 1) c ON true
  WHERE NOT v_held OR k.o <> ALL (r_o);
  IF v_held OR v_new IS NULL THEN RETURN; END IF;
  WITH u AS (
    INSERT INTO ratelimit.counter AS c (key, shape, g, ends, {insert})
    SELECT p_keys[x.o], p_shape, x.g, greatest({newends}), {newstate}
    FROM (SELECT k.o, k.cost, least(k.callers, {newleft})::int AS g
      FROM (SELECT k.o, CASE WHEN p_costs IS NULL THEN p_cost ELSE p_costs[k.o] END AS cost,
          CASE WHEN p_callers IS NULL THEN 1 ELSE p_callers[k.o] END AS callers
        FROM unnest(v_new) k(o)) k) x
    ORDER BY p_keys[x.o] COLLATE "C"
    ON CONFLICT (key) DO NOTHING
    RETURNING width_bucket(c.key, p_keys) AS o, c.g, {returning})
  SELECT r_o || array_agg(u.o), r_g || array_agg(u.g), {appendnew} INTO r_o, r_g, {into} FROM u;
END $$;
`

// takeFunction returns the function for some kinds, by their letters in order.
func takeFunction(name string) string {
	const cost = "(CASE WHEN p_costs IS NULL THEN p_cost ELSE p_costs[width_bucket(c.key, p_keys)] END)"
	const newCost = "(CASE WHEN p_costs IS NULL THEN p_cost ELSE p_costs[k.o] END)"
	var parts struct {
		parameters, out, columns, set, ends, first, brought, state, left, fits, returning, agg, into, appended, isNew, insert, newEnds, newState, newLeft, appendNew []string
	}
	for i := range len(name) {
		k := kindOf(name[i])
		at := func(text string) string { return strings.ReplaceAll(text, "#", fmt.Sprint(i+1)) }
		add := func(to *[]string, text string) {
			if text != "" {
				*to = append(*to, at(text))
			}
		}
		add(&parts.parameters, "n# bigint, s# bigint, u# bigint, w# bigint")
		add(&parts.fits, strings.ReplaceAll(k.fits, "COST", cost))
		add(&parts.isNew, newCost+" BETWEEN 1 AND "+k.cap)
		if k.brought != "" {
			add(&parts.first, ", "+k.brought)
		}
		add(&parts.brought, k.state)
		add(&parts.state, k.columns)
		add(&parts.left, "("+k.left+") / r.cost")
		add(&parts.newLeft, k.cap+" / k.cost")
		add(&parts.ends, strings.Replace(k.ends, "t#", "y.t#", 1))
		add(&parts.newEnds, strings.Replace(k.ends, "t#", k.opens, 1))
		for _, column := range []string{"t#", "a#", "b#"} {
			isB := column == "b#"
			value, start := "y."+column, "0"
			switch column {
			case "t#":
				start = k.opens
			case "a#":
				value, start = "y.a# + y.g * y.cost", "x.g * x.cost"
			}
			add(&parts.insert, column)
			add(&parts.newState, start)
			if isB && !k.hasB {
				continue
			}
			add(&parts.columns, column)
			add(&parts.set, value)
			add(&parts.out, "OUT r_"+column+" bigint[]")
			add(&parts.returning, "c."+column)
			add(&parts.agg, "array_agg(u."+column+")")
			add(&parts.into, "r_"+column)
			add(&parts.appended, "r_"+column+" || array_agg(coalesce(c."+column+", 0))")
			add(&parts.appendNew, "r_"+column+" || array_agg(u."+column+")")
		}
	}
	period := "-- no period"
	if strings.Contains(name, "c") {
		period = "IF v_now < p_begin OR v_now >= p_end THEN RETURN; END IF;"
	}
	list := func(of []string) string { return strings.Join(of, ", ") }
	return strings.NewReplacer(
		"{name}", name, "{parameters}", list(parts.parameters), "{out}", list(parts.out), "{period}", period,
		"{columns}", list(parts.columns), "{set}", list(parts.set), "{ends}", list(parts.ends), "{first}", strings.Join(parts.first, ""),
		"{brought}", list(parts.brought), "{state}", list(parts.state), "{left}", list(parts.left),
		"{fits}", strings.Join(parts.fits, "\n      AND "), "COST", cost,
		"{returning}", list(parts.returning), "{agg}", list(parts.agg), "{into}", list(parts.into), "{append}", list(parts.appended),
		"{new}", strings.Join(parts.isNew, " AND "), "{insert}", list(parts.insert), "{newends}", list(parts.newEnds),
		"{newstate}", list(parts.newState), "{newleft}", list(parts.newLeft), "{appendnew}", list(parts.appendNew),
	).Replace(takeSQL)
}

func kindOf(letter byte) *kindSQL {
	for i := range kindsSQL {
		if kindsSQL[i].letter == letter {
			return &kindsSQL[i]
		}
	}
	panic("no kind " + string(letter))
}

// takeNames returns the names of all functions take_*, without "take_".
func takeNames() (names []string) {
	last := []string{""}
	for range maxColumns {
		var next []string
		for _, name := range last {
			for _, k := range kindsSQL {
				if name == "" || orderOf(name[len(name)-1]) <= orderOf(k.letter) {
					next = append(next, name+string(k.letter))
				}
			}
		}
		names, last = append(names, next...), next
	}
	return names
}

// orderOf returns the place of a kind among the kinds.
func orderOf(letter byte) int {
	for i := range kindsSQL {
		if kindsSQL[i].letter == letter {
			return i
		}
	}
	return len(kindsSQL)
}
