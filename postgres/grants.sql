-- The last part of Migrate: who may do what.
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA ratelimit FROM PUBLIC;
DO $$
BEGIN
  IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'ratelimit_application') THEN
    GRANT USAGE ON SCHEMA ratelimit TO ratelimit_application;
    GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA ratelimit TO ratelimit_application;
  END IF;
  IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'ratelimit_auditor') THEN
    GRANT USAGE ON SCHEMA ratelimit TO ratelimit_auditor;
    GRANT SELECT ON ratelimit.standing TO ratelimit_auditor;
    GRANT SELECT (prefix, owner, made) ON ratelimit.prefix TO ratelimit_auditor;
  END IF;
END $$;
