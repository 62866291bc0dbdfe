-- Volumes. Times are microseconds since 1970 (UTC); JSON columns hold values that no query looks into, but filters on metadata.
CREATE TABLE volume_volumes (
    id TEXT NOT NULL PRIMARY KEY,
    project_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    name TEXT,
    description TEXT,
    size INTEGER NOT NULL,
    status TEXT NOT NULL,
    -- What the reconciler has to do.
    task TEXT,
    -- What it goes back to after 'backing-up', 'uploading', 'extending' and the like.
    previous_status TEXT,
    bootable INTEGER NOT NULL,
    multiattach INTEGER NOT NULL,
    read_only INTEGER,
    type_id TEXT NOT NULL,
    availability_zone TEXT NOT NULL,
    -- The node that has its bytes, or is to make them.
    host TEXT NOT NULL,
    metadata TEXT NOT NULL,
    image_metadata TEXT NOT NULL,
    -- 'empty', 'image', 'volume', 'snapshot' or 'backup', and its id.
    origin TEXT NOT NULL,
    origin_id TEXT,
    -- GiB, while it is 'extending'.
    new_size INTEGER,
    -- The image that it is uploaded to, the backup that is restored to it.
    target_id TEXT,
    created_at INTEGER NOT NULL,
    updated_at INTEGER,
    launched_at INTEGER
) STRICT;
CREATE INDEX volume_volumes_by_project ON volume_volumes (project_id, created_at);
CREATE INDEX volume_volumes_by_task ON volume_volumes (task) WHERE task IS NOT NULL;
CREATE INDEX volume_volumes_by_origin ON volume_volumes (origin_id) WHERE origin_id IS NOT NULL;

CREATE TABLE volume_attachments (
    id TEXT NOT NULL PRIMARY KEY,
    volume_id TEXT NOT NULL,
    project_id TEXT NOT NULL,
    server_id TEXT,
    -- 'reserved', 'attaching', 'attached', 'detaching'.
    status TEXT NOT NULL,
    read_only INTEGER NOT NULL,
    device TEXT,
    host TEXT,
    -- A JSON object, as the client gave it.
    connector TEXT,
    created_at INTEGER NOT NULL,
    attached_at INTEGER
) STRICT;
CREATE INDEX volume_attachments_by_volume ON volume_attachments (volume_id);
CREATE INDEX volume_attachments_by_server ON volume_attachments (server_id) WHERE server_id IS NOT NULL;
CREATE INDEX volume_attachments_by_project ON volume_attachments (project_id, created_at);

CREATE TABLE volume_snapshots (
    id TEXT NOT NULL PRIMARY KEY,
    project_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    volume_id TEXT NOT NULL,
    type_id TEXT NOT NULL,
    name TEXT,
    description TEXT,
    size INTEGER NOT NULL,
    status TEXT NOT NULL,
    -- What the reconciler has to do.
    task TEXT,
    metadata TEXT NOT NULL,
    -- As somebody has said it.
    progress TEXT,
    -- Of the volume, when it was made.
    bootable INTEGER NOT NULL,
    image_metadata TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER
) STRICT;
CREATE INDEX volume_snapshots_by_project ON volume_snapshots (project_id, created_at);
CREATE INDEX volume_snapshots_by_volume ON volume_snapshots (volume_id);
CREATE INDEX volume_snapshots_by_task ON volume_snapshots (task) WHERE task IS NOT NULL;

CREATE TABLE volume_backups (
    id TEXT NOT NULL PRIMARY KEY,
    project_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    -- It may be gone by now.
    volume_id TEXT NOT NULL,
    snapshot_id TEXT,
    name TEXT,
    description TEXT,
    size INTEGER NOT NULL,
    status TEXT NOT NULL,
    -- What the reconciler has to do.
    task TEXT,
    container TEXT,
    metadata TEXT NOT NULL,
    -- What the volume was beside its bytes.
    volume TEXT NOT NULL,
    availability_zone TEXT NOT NULL,
    host TEXT NOT NULL,
    fail_reason TEXT,
    data_timestamp INTEGER NOT NULL,
    -- Bytes in the folder of backups, and SHA-256 over the volume's bytes.
    stored INTEGER,
    sha256 TEXT,
    created_at INTEGER NOT NULL,
    updated_at INTEGER
) STRICT;
CREATE INDEX volume_backups_by_project ON volume_backups (project_id, created_at);
CREATE INDEX volume_backups_by_volume ON volume_backups (volume_id);
CREATE INDEX volume_backups_by_task ON volume_backups (task) WHERE task IS NOT NULL;

CREATE TABLE volume_types (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    description TEXT,
    is_public INTEGER NOT NULL,
    extra_specs TEXT NOT NULL,
    qos_id TEXT,
    created_at INTEGER NOT NULL,
    updated_at INTEGER
) STRICT;
CREATE UNIQUE INDEX volume_types_by_name ON volume_types (name);

CREATE TABLE volume_type_access (
    type_id TEXT NOT NULL,
    project_id TEXT NOT NULL,
    PRIMARY KEY (type_id, project_id)
) STRICT;

CREATE TABLE volume_default_types (
    project_id TEXT NOT NULL PRIMARY KEY,
    type_id TEXT NOT NULL
) STRICT;

CREATE TABLE volume_qos_specs (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    -- 'front-end', 'back-end' or 'both'.
    consumer TEXT NOT NULL,
    specs TEXT NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX volume_qos_specs_by_name ON volume_qos_specs (name);

CREATE TABLE volume_transfers (
    id TEXT NOT NULL PRIMARY KEY,
    volume_id TEXT NOT NULL,
    project_id TEXT NOT NULL,
    name TEXT,
    -- A salted hash of the key: only who made the transfer has seen it.
    salt TEXT NOT NULL,
    hash TEXT NOT NULL,
    no_snapshots INTEGER NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX volume_transfers_by_volume ON volume_transfers (volume_id);

-- The project '' holds the defaults of all.
CREATE TABLE volume_quotas (
    project_id TEXT NOT NULL,
    resource TEXT NOT NULL,
    value INTEGER NOT NULL,
    PRIMARY KEY (project_id, resource)
) STRICT;

CREATE TABLE volume_messages (
    id TEXT NOT NULL PRIMARY KEY,
    project_id TEXT NOT NULL,
    request_id TEXT NOT NULL,
    resource_type TEXT NOT NULL,
    resource_id TEXT NOT NULL,
    -- Cinder's numbers of actions and details.
    action TEXT NOT NULL,
    detail TEXT NOT NULL,
    text TEXT NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;
CREATE INDEX volume_messages_by_project ON volume_messages (project_id, created_at);

-- Services that an administrator has disabled.
CREATE TABLE volume_services (
    host TEXT NOT NULL,
    binary TEXT NOT NULL,
    disabled_reason TEXT,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (host, binary)
) STRICT;

-- What every volume is unless it says otherwise. It keeps no promise of the kind that brackets before a description make: bytes
-- are on one node and not encrypted.
INSERT INTO volume_types (id, name, description, is_public, extra_specs, created_at) VALUES
    ('5f1c2a70-5d0f-4d0e-9b57-a110d0000001', 'standard', 'Thin volumes on the node''s own pool', 1,
     '{}', 0);
