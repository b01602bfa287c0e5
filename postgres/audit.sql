-- The part of Migrate that makes the audit trail. It may run any number of times.

-- What the owner of the schema decides. No role of an application may change it, because
-- that would be a way to have records deleted.
CREATE TABLE IF NOT EXISTS ratelimit.audit_setting (
  only_row bool PRIMARY KEY DEFAULT true CHECK (only_row),
  keep_months int NOT NULL DEFAULT 13, -- how long records are kept
  secret_days int NOT NULL DEFAULT 90  -- how long a secret exists
);
DO $$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_constraint WHERE conname = 'audit_setting_bounds' AND conrelid = 'ratelimit.audit_setting'::regclass) THEN
    UPDATE ratelimit.audit_setting SET keep_months = least(keep_months, 1200), secret_days = least(secret_days, 36500);
    ALTER TABLE ratelimit.audit_setting ADD CONSTRAINT audit_setting_bounds CHECK (keep_months BETWEEN 1 AND 1200 AND secret_days BETWEEN 1 AND 36500);
  END IF;
END $$;
INSERT INTO ratelimit.audit_setting DEFAULT VALUES ON CONFLICT DO NOTHING;

-- The records, in one partition for each month in UTC. A record belongs to the month in
-- which it was written by the server's clock, so the clock of the writer makes no
-- difference, and a month that is over never changes. id, written and writer are set by the
-- server. The other columns are the fields of audit.Record.
CREATE SEQUENCE IF NOT EXISTS ratelimit.audit_id;
CREATE TABLE IF NOT EXISTS ratelimit.audit (
  id bigint NOT NULL,
  written timestamptz NOT NULL,
  writer name NOT NULL, -- the role whose session has written it
  time timestamptz NOT NULL,
  kind text NOT NULL,
  service text,
  instance text,
  limiter text,
  actor text,
  reason text,
  outcome text,
  pseudonym text,
  epoch text,
  key text,
  policy text,
  "limit" text,
  units bigint,
  count bigint,
  source text,
  since timestamptz,
  until timestamptz,
  ended text,
  code text,
  error text,
  route text,
  request_id text
) PARTITION BY RANGE (written);
DO $$
BEGIN
  IF to_regclass('ratelimit.audit_time') IS NULL THEN -- IF NOT EXISTS would lock out writers
    CREATE INDEX audit_time ON ratelimit.audit (time, id);
    CREATE INDEX audit_pseudonym ON ratelimit.audit (pseudonym, time) WHERE pseudonym IS NOT NULL;
    CREATE INDEX audit_key ON ratelimit.audit (key, time) WHERE key IS NOT NULL;
  END IF;
END $$;

-- The secrets of pseudonyms. Only the owner and the functions can read them. ANALYZE must not
-- copy them to the statistics, where they would outlive the table's own file.
CREATE TABLE IF NOT EXISTS ratelimit.audit_secret (
  epoch text PRIMARY KEY,
  begins timestamptz NOT NULL,
  secret bytea NOT NULL
);
ALTER TABLE ratelimit.audit_secret ALTER COLUMN secret SET STATISTICS 0;

CREATE OR REPLACE FUNCTION ratelimit.audit_now() RETURNS timestamptz LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS
$$ SELECT to_timestamp(ratelimit.now() / 1e9) $$;

-- The partitions, with the first day of their months. What somebody has attached under a name
-- of another form is not among them.
CREATE OR REPLACE VIEW ratelimit.audit_month AS
SELECT c.oid AS part, c.relname AS name, to_date(substr(c.relname, 7), 'YYYY_MM') AS begins
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = 'ratelimit.audit'::regclass AND c.relname ~ '^audit_[1-9][0-9]{3}_(0[1-9]|1[0-2])$';

-- audit_at returns when a record of now is said to be written. That is now by the server's
-- clock, unless the clock has been set back. Then it is the beginning of the last month in use:
-- in an earlier month a record would be dropped too soon, or at once when the clock is
-- right again. A month counts if it and the month before have records. So a clock that was
-- ahead by more than a month for a while, and has left one month in the future, changes nothing.
-- The size of a partition says whether it has ever had records.
CREATE OR REPLACE FUNCTION ratelimit.audit_at() RETURNS timestamptz LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
DECLARE
  v_now timestamptz := ratelimit.audit_now();
BEGIN
  RETURN greatest(v_now, (SELECT max(m.begins) FROM ratelimit.audit_month m WHERE CASE WHEN m.begins > v_now THEN pg_relation_size(m.part) > 0
    AND EXISTS (SELECT FROM ratelimit.audit_month o WHERE CASE WHEN o.begins = m.begins - interval '1 month' THEN pg_relation_size(o.part) > 0 END) END));
END $$;

-- audit_partition makes the partition of a month, unless there is one. Sessions take turns. A
-- table that is attached, and not made as a partition, locks out neither readers nor writers.
-- It has the rights that are given here, and none of ALTER DEFAULT PRIVILEGES.
CREATE OR REPLACE FUNCTION ratelimit.audit_partition(p_at timestamptz) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET lock_timeout = '1s' SET client_min_messages = warning AS $$
DECLARE
  v_name text := 'audit_' || to_char(p_at, 'YYYY_MM');
  v_bounds text := format('FOR VALUES FROM (%L) TO (%L)', date_trunc('month', p_at), date_trunc('month', p_at) + interval '1 month');
  v_role text;
BEGIN
  IF EXISTS (SELECT FROM pg_inherits WHERE inhrelid = to_regclass('ratelimit.' || v_name)) THEN RETURN; END IF;
  LOCK TABLE ratelimit.audit IN SHARE UPDATE EXCLUSIVE MODE; -- which ATTACH needs; readers and writers go on
  IF EXISTS (SELECT FROM pg_inherits WHERE inhrelid = to_regclass('ratelimit.' || v_name)) THEN RETURN; END IF;
  IF to_regclass('ratelimit.' || v_name) IS NOT NULL THEN
    RAISE EXCEPTION 'the table ratelimit.% is not a partition of ratelimit.audit, so no record of its month can be written: ALTER TABLE ratelimit.audit ATTACH PARTITION ratelimit.% %, or rename it',
      v_name, v_name, v_bounds USING ERRCODE = 'object_not_in_prerequisite_state';
  END IF;
  EXECUTE format('CREATE TABLE ratelimit.%I (LIKE ratelimit.audit INCLUDING DEFAULTS)', v_name);
  FOR v_role IN
    SELECT DISTINCT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END
    FROM pg_class c, aclexplode(c.relacl) a WHERE c.oid = to_regclass('ratelimit.' || v_name) AND a.grantee <> c.relowner
  LOOP
    EXECUTE format('REVOKE ALL ON ratelimit.%I FROM %s CASCADE', v_name, v_role);
  END LOOP;
  EXECUTE format('ALTER TABLE ratelimit.audit ATTACH PARTITION ratelimit.%I %s', v_name, v_bounds);
  IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'ratelimit_auditor') THEN
    EXECUTE format('GRANT SELECT ON ratelimit.%I TO ratelimit_auditor', v_name); -- to dump it
  END IF;
END $$;

-- audit_write writes records, which are a JSON array of audit.Record. With p_rows it leaves
-- out the records that belong to a row, unless the row is in p_done. It returns how many it
-- has written.
CREATE OR REPLACE FUNCTION ratelimit.audit_write(p_records text, p_rows int[], p_done int[], p_async bool) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET jit = off SET lock_timeout = '1s' AS $$
DECLARE
  v_at timestamptz := ratelimit.audit_at();
  v_count bigint;
BEGIN
  IF p_async THEN PERFORM set_config('synchronous_commit', 'off', true); END IF;
  PERFORM ratelimit.audit_partition(v_at);
  INSERT INTO ratelimit.audit (id, written, writer, time, kind, service, instance, limiter, actor, reason, outcome, pseudonym, epoch, key,
    policy, "limit", units, count, source, since, until, ended, code, error, route, request_id)
  SELECT nextval('ratelimit.audit_id'), v_at, session_user, r.time, r.kind, r.service, r.instance, r.limiter, r.actor, r.reason, r.outcome, r.pseudonym, r.epoch, r.key,
    r.policy, r."limit", r.units, r.count, r.source, r.since, r.until, r.ended, r.code, r.error, r.route, r.request_id
  FROM json_array_elements(p_records::json) WITH ORDINALITY e(record, o)
  CROSS JOIN LATERAL json_to_record(e.record) r(time timestamptz, kind text, service text, instance text, limiter text, actor text, reason text, outcome text,
    pseudonym text, epoch text, key text, policy text, "limit" text, units bigint, count bigint, source text, since timestamptz, until timestamptz,
    ended text, code text, error text, route text, request_id text)
  WHERE p_rows IS NULL OR p_rows[e.o] = 0 OR p_rows[e.o] = ANY (p_done)
  ORDER BY e.o;
  GET DIAGNOSTICS v_count = ROW_COUNT;
  RETURN v_count;
END $$;

-- write_recorded is write and audit_write in one, or add and audit_write without p_versions:
-- rows and the records of what was decided about them, or neither. It never does both write
-- and add: an insert waits for an update of the same key, so two such calls could wait for each
-- other. p_rows has the number of the row of each record, or 0 for one of a row that stays as
-- it is. r_written is not true if the look was a second ago: then nothing was written.
CREATE OR REPLACE FUNCTION ratelimit.write_recorded(p_keys text[], p_versions bigint[], p_shapes int[], p_ends bigint[], p_untils bigint[],
  p_states bigint[], p_more text[], p_now bigint, p_records text, p_rows int[], OUT r_o int[], OUT r_written bool)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET jit = off AS $$
BEGIN
  IF ratelimit.now() - p_now > 1000000000 THEN RETURN; END IF;
  IF p_versions IS NULL THEN
    r_o := ratelimit.add(p_keys, p_shapes, p_ends, p_untils, p_states, p_more, p_now, false);
  ELSIF cardinality(p_keys) > 0 THEN
    r_o := ratelimit.write(p_keys, p_versions, p_shapes, p_ends, p_untils, p_states, p_more, p_now, false);
  END IF;
  PERFORM ratelimit.audit_write(p_records, p_rows, r_o, false);
  r_written := true;
END $$;

-- audit_keep makes the partition of the next month, and drops one partition: one of the
-- future that is empty, or the oldest one if more than keep_months newer ones have begun. So a
-- clock that is wrong cannot drop the trail: it costs about as many of the oldest months as it
-- has been in. A clock that has just jumped ahead by more than two months drops nothing, because
-- the month before has no partition.
--
-- It waits for readers of the records for a moment only, and drops the partition at another time.
CREATE OR REPLACE FUNCTION ratelimit.audit_keep() RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET lock_timeout = '100ms' SET client_min_messages = warning AS $$
DECLARE
  v_month timestamptz := date_trunc('month', ratelimit.audit_at());
  v_keep int := coalesce((SELECT s.keep_months FROM ratelimit.audit_setting s), 13);
  v_name text;
  v_used bool;
BEGIN
  PERFORM ratelimit.audit_partition(v_month);
  PERFORM ratelimit.audit_partition(v_month + interval '1 month');
  FOR v_name IN
    SELECT m.name FROM ratelimit.audit_month m
    WHERE CASE WHEN m.begins > v_month + interval '1 month' THEN pg_relation_size(m.part) = 0
      ELSE m.begins < v_month - v_keep * interval '1 month'
        AND EXISTS (SELECT FROM ratelimit.audit_month o WHERE o.begins = v_month - interval '1 month')
        AND (SELECT count(*) FROM ratelimit.audit_month o WHERE o.begins > m.begins AND o.begins <= v_month) > v_keep END
    ORDER BY m.begins
  LOOP
    BEGIN
      IF v_name > 'audit_' || to_char(v_month, 'YYYY_MM') COLLATE "C" THEN
        LOCK TABLE ONLY ratelimit.audit; -- before its partition, as writers do
        EXECUTE format('SELECT EXISTS (SELECT FROM ratelimit.%I)', v_name) INTO v_used;
        CONTINUE WHEN v_used;
      END IF;
      EXECUTE format('DROP TABLE ratelimit.%I', v_name);
      RETURN;
    EXCEPTION
      WHEN lock_not_available THEN
        RAISE LOG 'ratelimit.% is not dropped yet: ratelimit.audit is in use', v_name;
        RETURN;
      WHEN dependent_objects_still_exist THEN -- such as a view of somebody who wants to keep it
        RAISE LOG 'ratelimit.% is not dropped: other objects depend on it', v_name;
    END;
  END LOOP;
END $$;

-- audit_secrets returns the secrets that exist, the newest first, and the server's time. A
-- new one begins when a third of the time of the newest is over. A secret of the future, from a
-- clock that was ahead, begins now: then it ends in time. Usually there is nothing to change, and the
-- function waits for nobody. Changes are made by one session at a time. While one does not end its
-- transaction, the others go on with what there is.
--
-- What is over is deleted by writing the table again: a row that is only deleted stays in the
-- file until a vacuum.
CREATE OR REPLACE FUNCTION ratelimit.audit_secrets(OUT r_now timestamptz, OUT r_days int, OUT r_epochs text[], OUT r_begins timestamptz[], OUT r_secrets bytea[])
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET lock_timeout = '1s' AS $$
DECLARE
  v_keep interval;
  v_late timestamptz;
  v_left ratelimit.audit_secret[];
BEGIN
  r_now := ratelimit.audit_now();
  v_late := r_now + interval '1 hour';
  r_days := coalesce((SELECT s.secret_days FROM ratelimit.audit_setting s), 90);
  v_keep := r_days * interval '24 hours';
  IF EXISTS (SELECT FROM ratelimit.audit_secret s WHERE s.begins <= r_now - v_keep OR s.begins > v_late)
    OR NOT EXISTS (SELECT FROM ratelimit.audit_secret s WHERE s.begins > r_now - v_keep / 3) THEN
    BEGIN
      LOCK TABLE ratelimit.audit_secret IN SHARE UPDATE EXCLUSIVE MODE;
      UPDATE ratelimit.audit_secret SET begins = r_now WHERE begins > v_late;
      IF EXISTS (SELECT FROM ratelimit.audit_secret s WHERE s.begins <= r_now - v_keep) THEN
        BEGIN
          LOCK TABLE ratelimit.audit_secret NOWAIT; -- a session that waits for the other lock has read the table
          SELECT array_agg(s) INTO v_left FROM ratelimit.audit_secret s WHERE s.begins > r_now - v_keep;
          TRUNCATE ratelimit.audit_secret;
          INSERT INTO ratelimit.audit_secret SELECT (s).* FROM unnest(v_left) s;
        EXCEPTION WHEN lock_not_available THEN NULL; -- somebody reads it; the next call tries again
        END;
      END IF;
      IF NOT EXISTS (SELECT FROM ratelimit.audit_secret s WHERE s.begins > r_now - v_keep / 3) THEN
        INSERT INTO ratelimit.audit_secret (epoch, begins, secret) VALUES (to_char(r_now, 'YYYYMMDD') || '-' || left(gen_random_uuid()::text, 8), r_now,
          sha256(convert_to(gen_random_uuid()::text || gen_random_uuid()::text || gen_random_uuid()::text, 'UTF8')));
      END IF;
    EXCEPTION WHEN lock_not_available THEN
      IF NOT EXISTS (SELECT FROM ratelimit.audit_secret s WHERE s.begins > r_now - v_keep) THEN RAISE; END IF;
    END;
  END IF;
  SELECT array_agg(s.epoch ORDER BY s.begins DESC, s.epoch DESC), array_agg(s.begins ORDER BY s.begins DESC, s.epoch DESC), array_agg(s.secret ORDER BY s.begins DESC, s.epoch DESC)
  INTO r_epochs, r_begins, r_secrets FROM ratelimit.audit_secret s WHERE s.begins > r_now - v_keep;
END $$;
