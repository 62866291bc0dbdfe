CREATE TABLE images (
    -- A UUID with hyphens.
    id TEXT NOT NULL PRIMARY KEY,
    -- The project.
    owner TEXT NOT NULL,
    name TEXT,
    -- 'queued', 'saving', 'uploading', 'importing', 'active', 'deactivated', 'pending_delete'.
    status TEXT NOT NULL,
    -- 'public', 'private', 'shared', 'community'.
    visibility TEXT NOT NULL,
    disk_format TEXT,
    container_format TEXT,
    -- Of the uploaded bytes.
    size INTEGER,
    checksum TEXT,
    os_hash_value TEXT,
    -- What a guest sees, in bytes.
    virtual_size INTEGER,
    -- 1: the uploaded bytes are kept beside the raw image.
    original INTEGER NOT NULL,
    -- GiB and MiB.
    min_disk INTEGER NOT NULL,
    min_ram INTEGER NOT NULL,
    protected INTEGER NOT NULL,
    hidden INTEGER NOT NULL,
    -- One a line.
    tags TEXT NOT NULL,
    -- A JSON object of texts.
    properties TEXT NOT NULL,
    -- Microseconds since 1970.
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL
) STRICT;
CREATE INDEX images_by_owner ON images (owner);

CREATE TABLE image_members (
    image_id TEXT NOT NULL,
    -- The project that an image is shared with.
    member_id TEXT NOT NULL,
    -- 'pending', 'accepted', 'rejected'.
    status TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (image_id, member_id)
) STRICT;
CREATE INDEX image_members_by_member ON image_members (member_id);
