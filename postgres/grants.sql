-- The last part of Migrate: who may do what.
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA ratelimit FROM PUBLIC;

-- Rights that come from ALTER DEFAULT PRIVILEGES are taken back: nobody meant them for what is in
-- this schema. Rights that somebody has granted by hand stay, except on the secrets and the settings.
DO $$
DECLARE
  v_object text;
BEGIN
  FOR v_object IN
    WITH object AS (
      SELECT c.oid, format('%s %s', CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, c.oid::regclass) AS name, c.relowner AS owner, c.relacl AS acl
      FROM pg_class c WHERE c.relnamespace = 'ratelimit'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'S')
      UNION ALL
      SELECT p.oid, 'FUNCTION ' || p.oid::regprocedure, p.proowner, p.proacl FROM pg_proc p WHERE p.pronamespace = 'ratelimit'::regnamespace
    )
    SELECT DISTINCT o.name || ' FROM ' || CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END
    FROM object o, aclexplode(o.acl) a
    WHERE a.grantee <> o.owner AND coalesce(pg_get_userbyid(nullif(a.grantee, 0)) NOT IN ('ratelimit_application', 'ratelimit_auditor'), true)
      AND (o.oid IN ('ratelimit.audit_secret'::regclass, 'ratelimit.audit_setting'::regclass)
        OR a.grantee IN (SELECT b.grantee FROM pg_default_acl d, aclexplode(d.defaclacl) b WHERE d.defaclobjtype IN ('r', 'S', 'f')))
  LOOP
    EXECUTE 'REVOKE ALL ON ' || v_object || ' CASCADE';
  END LOOP;
END $$;
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
