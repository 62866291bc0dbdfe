-- Times are microseconds since 1970, ids are UUIDs with hyphens.

-- One key for each project that has secrets, encrypted under the cloud's root key, which is not in the database.
CREATE TABLE secret_keys (
    project_id TEXT NOT NULL PRIMARY KEY,
    wrapped BLOB NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;

CREATE TABLE secrets (
    id TEXT NOT NULL PRIMARY KEY,
    project_id TEXT NOT NULL,
    creator_id TEXT NOT NULL,
    name TEXT,
    -- 'symmetric', 'public', 'private', 'certificate', 'passphrase', 'opaque'.
    kind TEXT NOT NULL,
    algorithm TEXT,
    bit_length INTEGER,
    mode TEXT,
    expires_at INTEGER,
    -- Both or neither: without, the payload has yet to come. Encrypted under the project's key.
    content_type TEXT,
    sealed BLOB,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL
) STRICT;
CREATE INDEX secrets_by_project ON secrets (project_id, created_at);

CREATE TABLE secret_metadata (
    secret_id TEXT NOT NULL,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (secret_id, key)
) STRICT;

CREATE TABLE secret_consumers (
    secret_id TEXT NOT NULL,
    service TEXT NOT NULL,
    resource_type TEXT NOT NULL,
    resource_id TEXT NOT NULL,
    PRIMARY KEY (secret_id, service, resource_type, resource_id)
) STRICT;

-- Who may read a secret or a container beside, or instead of, its project.
CREATE TABLE secret_acls (
    target_id TEXT NOT NULL PRIMARY KEY,
    project_access INTEGER NOT NULL,
    -- A JSON list of user ids.
    users TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL
) STRICT;

CREATE TABLE secret_containers (
    id TEXT NOT NULL PRIMARY KEY,
    project_id TEXT NOT NULL,
    creator_id TEXT NOT NULL,
    name TEXT,
    -- 'generic', 'rsa', 'certificate'.
    kind TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL
) STRICT;
CREATE INDEX secret_containers_by_project ON secret_containers (project_id, created_at);

CREATE TABLE secret_container_refs (
    container_id TEXT NOT NULL,
    name TEXT NOT NULL,
    secret_id TEXT NOT NULL,
    PRIMARY KEY (container_id, name, secret_id)
) STRICT;
CREATE INDEX secret_container_refs_by_secret ON secret_container_refs (secret_id);

CREATE TABLE secret_container_consumers (
    container_id TEXT NOT NULL,
    name TEXT NOT NULL,
    url TEXT NOT NULL,
    PRIMARY KEY (container_id, name, url)
) STRICT;

CREATE TABLE secret_orders (
    id TEXT NOT NULL PRIMARY KEY,
    project_id TEXT NOT NULL,
    creator_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    -- JSON, as it was ordered.
    meta TEXT NOT NULL,
    secret_id TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL
) STRICT;
CREATE INDEX secret_orders_by_project ON secret_orders (project_id, created_at);

CREATE TABLE secret_quotas (
    project_id TEXT NOT NULL,
    resource TEXT NOT NULL,
    amount INTEGER NOT NULL,
    PRIMARY KEY (project_id, resource)
) STRICT;
