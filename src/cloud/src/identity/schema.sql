CREATE TABLE domains (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    description TEXT NOT NULL,
    enabled INTEGER NOT NULL,
    extra TEXT NOT NULL
) STRICT;

CREATE TABLE projects (
    id TEXT NOT NULL PRIMARY KEY,
    domain_id TEXT NOT NULL,
    -- Another project of the same domain; NULL directly below the domain.
    parent_id TEXT,
    name TEXT NOT NULL,
    description TEXT NOT NULL,
    enabled INTEGER NOT NULL,
    tags TEXT NOT NULL,
    extra TEXT NOT NULL,
    UNIQUE (domain_id, name)
) STRICT;

CREATE TABLE users (
    id TEXT NOT NULL PRIMARY KEY,
    domain_id TEXT NOT NULL,
    name TEXT NOT NULL,
    description TEXT,
    email TEXT,
    enabled INTEGER NOT NULL,
    default_project_id TEXT,
    -- A PHC string; NULL: no password opens this account.
    password_hash TEXT,
    -- Times are microseconds since 1970.
    password_changed_at INTEGER,
    -- Tokens that were issued earlier are void.
    tokens_valid_from INTEGER NOT NULL,
    extra TEXT NOT NULL,
    UNIQUE (domain_id, name)
) STRICT;

-- Passwords that a user had before, as many as the configuration asks for.
CREATE TABLE password_history (
    user_id TEXT NOT NULL,
    -- When it ceased to be the user's password.
    replaced_at INTEGER NOT NULL,
    password_hash TEXT NOT NULL,
    PRIMARY KEY (user_id, replaced_at)
) STRICT;

CREATE TABLE user_groups (
    id TEXT NOT NULL PRIMARY KEY,
    domain_id TEXT NOT NULL,
    name TEXT NOT NULL,
    description TEXT NOT NULL,
    extra TEXT NOT NULL,
    UNIQUE (domain_id, name)
) STRICT;

CREATE TABLE group_members (
    group_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    PRIMARY KEY (group_id, user_id)
) STRICT;
CREATE INDEX group_members_by_user ON group_members (user_id);

CREATE TABLE roles (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    description TEXT
) STRICT;

CREATE TABLE implied_roles (
    prior_role_id TEXT NOT NULL,
    implied_role_id TEXT NOT NULL,
    PRIMARY KEY (prior_role_id, implied_role_id)
) STRICT;

CREATE TABLE role_assignments (
    -- 'user' or 'group'.
    actor_kind TEXT NOT NULL,
    actor_id TEXT NOT NULL,
    -- 'project', 'domain' or 'system' (whose id is 'all').
    target_kind TEXT NOT NULL,
    target_id TEXT NOT NULL,
    role_id TEXT NOT NULL,
    -- 1: on the projects below the target, not on the target itself.
    inherited INTEGER NOT NULL,
    PRIMARY KEY (actor_kind, actor_id, target_kind, target_id, role_id, inherited)
) STRICT;
CREATE INDEX role_assignments_by_target ON role_assignments (target_kind, target_id);

CREATE TABLE application_credentials (
    id TEXT NOT NULL PRIMARY KEY,
    user_id TEXT NOT NULL,
    project_id TEXT NOT NULL,
    name TEXT NOT NULL,
    description TEXT,
    secret_hash TEXT NOT NULL,
    expires_at INTEGER,
    -- 1: may make and delete application credentials.
    unrestricted INTEGER NOT NULL,
    UNIQUE (user_id, name)
) STRICT;

CREATE TABLE application_credential_roles (
    credential_id TEXT NOT NULL,
    role_id TEXT NOT NULL,
    PRIMARY KEY (credential_id, role_id)
) STRICT;

-- What users leave with the cloud: EC2 keys, TOTP seeds, certificates.
CREATE TABLE credentials (
    id TEXT NOT NULL PRIMARY KEY,
    user_id TEXT NOT NULL,
    project_id TEXT,
    kind TEXT NOT NULL,
    -- Encrypted under the cloud's root key.
    sealed BLOB NOT NULL
) STRICT;
CREATE INDEX credentials_by_user ON credentials (user_id);

CREATE TABLE token_keys (
    id INTEGER NOT NULL PRIMARY KEY,
    -- The key, encrypted under the cloud's root key.
    wrapped BLOB NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;

CREATE TABLE token_revocations (
    -- 16 bytes.
    audit_id BLOB NOT NULL PRIMARY KEY,
    -- The token's own end; the row is of no use after it.
    expires_at INTEGER NOT NULL
) STRICT;
