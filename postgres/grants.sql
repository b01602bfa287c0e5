-- The last part of Migrate: who may do what.
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA ratelimit FROM PUBLIC;
DO $$
DECLARE
  v_partition regclass;
BEGIN
  IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'ratelimit_application') THEN
    GRANT USAGE ON SCHEMA ratelimit TO ratelimit_application;
    GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA ratelimit TO ratelimit_application;
    REVOKE EXECUTE ON FUNCTION ratelimit.audit_partition(timestamptz) FROM ratelimit_application; -- others call it for them
  END IF;
  IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'ratelimit_auditor') THEN
    GRANT USAGE ON SCHEMA ratelimit TO ratelimit_auditor;
    GRANT SELECT ON ratelimit.standing, ratelimit.audit TO ratelimit_auditor;
    GRANT SELECT (prefix, owner, made) ON ratelimit.prefix TO ratelimit_auditor;
    FOR v_partition IN SELECT inhrelid::regclass FROM pg_inherits WHERE inhparent = 'ratelimit.audit'::regclass LOOP
      EXECUTE format('GRANT SELECT ON %s TO ratelimit_auditor', v_partition);
    END LOOP;
  END IF;
END $$;
