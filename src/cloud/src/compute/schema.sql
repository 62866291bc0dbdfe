-- Compute. Times are microseconds since 1970 (UTC); JSON columns hold values that no query looks into.
CREATE TABLE compute_flavors (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    vcpus INTEGER NOT NULL,
    ram_mib INTEGER NOT NULL,
    disk_gib INTEGER NOT NULL,
    ephemeral_gib INTEGER NOT NULL DEFAULT 0,
    swap_mib INTEGER NOT NULL DEFAULT 0,
    rxtx_factor REAL NOT NULL DEFAULT 1.0,
    is_public INTEGER NOT NULL DEFAULT 1,
    description TEXT,
    extra_specs TEXT NOT NULL DEFAULT '{}'
) STRICT;

CREATE TABLE compute_flavor_access (
    flavor_id TEXT NOT NULL,
    project_id TEXT NOT NULL,
    PRIMARY KEY (flavor_id, project_id)
) STRICT;

CREATE TABLE compute_key_pairs (
    user_id TEXT NOT NULL,
    name TEXT NOT NULL,
    number INTEGER NOT NULL,
    type TEXT NOT NULL,
    public_key TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (user_id, name)
) STRICT;

CREATE TABLE compute_servers (
    id TEXT NOT NULL PRIMARY KEY,
    project_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    name TEXT NOT NULL,
    description TEXT,
    hostname TEXT NOT NULL,
    flavor TEXT NOT NULL,
    vcpus INTEGER NOT NULL,
    ram_mib INTEGER NOT NULL,
    image_id TEXT,
    root_volume TEXT NOT NULL,
    root_bytes INTEGER NOT NULL,
    key_pair TEXT,
    config_drive INTEGER NOT NULL,
    metadata TEXT NOT NULL,
    tags TEXT NOT NULL,
    availability_zone TEXT,
    access_ip_v4 TEXT,
    access_ip_v6 TEXT,
    reservation_id TEXT NOT NULL,
    launch_index INTEGER NOT NULL,
    disk_config TEXT NOT NULL,
    server_group TEXT,
    locked_by TEXT,
    locked_reason TEXT,
    -- What should be.
    wanted TEXT NOT NULL,
    generation INTEGER NOT NULL,
    -- What is.
    observed_generation INTEGER NOT NULL,
    vm_state TEXT NOT NULL,
    task_state TEXT,
    power_state INTEGER NOT NULL,
    host TEXT,
    zone TEXT,
    fault TEXT,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    launched_at INTEGER,
    terminated_at INTEGER,
    deleted INTEGER NOT NULL DEFAULT 0,
    volume_backed INTEGER NOT NULL DEFAULT 0,
    exchange TEXT,
    rescue TEXT,
    snapshot TEXT,
    shelved_image TEXT
) STRICT;
CREATE INDEX compute_servers_by_project ON compute_servers (project_id, deleted, created_at);
CREATE INDEX compute_servers_by_time ON compute_servers (deleted, created_at);
CREATE INDEX compute_servers_by_host ON compute_servers (host, deleted);

-- Disks beside a local root disk: volumes of the block storage service, and blank local ones.
CREATE TABLE compute_disks (
    server_id TEXT NOT NULL,
    volume_id TEXT NOT NULL,
    device TEXT NOT NULL,
    -- The guest's order; 0 is what it boots from.
    position INTEGER NOT NULL,
    local INTEGER NOT NULL,
    size_bytes INTEGER NOT NULL,
    -- 'attaching', 'attached' or 'detaching'; a local one is 'attached'.
    state TEXT NOT NULL,
    -- Of the block storage service.
    attachment_id TEXT,
    delete_on_termination INTEGER NOT NULL,
    tag TEXT,
    request_id TEXT,
    PRIMARY KEY (server_id, volume_id)
) STRICT;
CREATE INDEX compute_disks_by_volume ON compute_disks (volume_id);

-- Ports that are to come to a server's machine, or to leave it.
CREATE TABLE compute_plugs (
    server_id TEXT NOT NULL,
    port_id TEXT NOT NULL,
    attach INTEGER NOT NULL,
    request_id TEXT,
    PRIMARY KEY (server_id, port_id)
) STRICT;

-- Tags of a server's interfaces.
CREATE TABLE compute_port_tags (
    port_id TEXT NOT NULL PRIMARY KEY,
    server_id TEXT NOT NULL,
    tag TEXT NOT NULL
) STRICT;
CREATE INDEX compute_port_tags_by_server ON compute_port_tags (server_id);

CREATE TABLE compute_user_data (
    server_id TEXT NOT NULL PRIMARY KEY,
    data TEXT NOT NULL
) STRICT;

CREATE TABLE compute_actions (
    server_id TEXT NOT NULL,
    request_id TEXT NOT NULL,
    action TEXT NOT NULL,
    event TEXT NOT NULL,
    user_id TEXT NOT NULL,
    project_id TEXT NOT NULL,
    host TEXT,
    started_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    finished_at INTEGER,
    result TEXT,
    message TEXT,
    PRIMARY KEY (server_id, request_id)
) STRICT;

CREATE TABLE compute_server_groups (
    id TEXT NOT NULL PRIMARY KEY,
    project_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    name TEXT NOT NULL,
    policy TEXT NOT NULL,
    max_per_host INTEGER,
    created_at INTEGER NOT NULL
) STRICT;
CREATE INDEX compute_server_groups_by_project ON compute_server_groups (project_id);
CREATE INDEX compute_servers_by_group ON compute_servers (server_group) WHERE server_group IS NOT NULL;

-- Resizes, for `os-migrations`.
CREATE TABLE compute_migrations (
    number INTEGER NOT NULL PRIMARY KEY,
    id TEXT NOT NULL,
    server_id TEXT NOT NULL,
    project_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    host TEXT NOT NULL,
    status TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL
) STRICT;
CREATE INDEX compute_migrations_by_server ON compute_migrations (server_id);

CREATE TABLE compute_aggregates (
    number INTEGER NOT NULL PRIMARY KEY,
    id TEXT NOT NULL,
    name TEXT NOT NULL,
    zone TEXT,
    metadata TEXT NOT NULL,
    hosts TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER
) STRICT;

-- The project '' is all those of which nothing else was said.
CREATE TABLE compute_quotas (
    project_id TEXT NOT NULL,
    resource TEXT NOT NULL,
    value INTEGER NOT NULL,
    PRIMARY KEY (project_id, resource)
) STRICT;

-- The flavors that the Sovereign Cloud Stack's standard 0103 makes mandatory.
INSERT INTO compute_flavors (id, name, vcpus, ram_mib, disk_gib, extra_specs) VALUES
    ('SCS-1V-4', 'SCS-1V-4', 1, 4096, 0, '{"scs:cpu-type": "shared-core", "scs:name-v1": "SCS-1V:4", "scs:name-v2": "SCS-1V-4"}'),
    ('SCS-2V-8', 'SCS-2V-8', 2, 8192, 0, '{"scs:cpu-type": "shared-core", "scs:name-v1": "SCS-2V:8", "scs:name-v2": "SCS-2V-8"}'),
    ('SCS-4V-16', 'SCS-4V-16', 4, 16384, 0, '{"scs:cpu-type": "shared-core", "scs:name-v1": "SCS-4V:16", "scs:name-v2": "SCS-4V-16"}'),
    ('SCS-4V-16-100s', 'SCS-4V-16-100s', 4, 16384, 100, '{"scs:cpu-type": "shared-core", "scs:disk0-type": "ssd", "scs:name-v1": "SCS-4V:16:100s", "scs:name-v2": "SCS-4V-16-100s"}'),
    ('SCS-8V-32', 'SCS-8V-32', 8, 32768, 0, '{"scs:cpu-type": "shared-core", "scs:name-v1": "SCS-8V:32", "scs:name-v2": "SCS-8V-32"}'),
    ('SCS-1V-2', 'SCS-1V-2', 1, 2048, 0, '{"scs:cpu-type": "shared-core", "scs:name-v1": "SCS-1V:2", "scs:name-v2": "SCS-1V-2"}'),
    ('SCS-2V-4', 'SCS-2V-4', 2, 4096, 0, '{"scs:cpu-type": "shared-core", "scs:name-v1": "SCS-2V:4", "scs:name-v2": "SCS-2V-4"}'),
    ('SCS-2V-4-20s', 'SCS-2V-4-20s', 2, 4096, 20, '{"scs:cpu-type": "shared-core", "scs:disk0-type": "ssd", "scs:name-v1": "SCS-2V:4:20s", "scs:name-v2": "SCS-2V-4-20s"}'),
    ('SCS-4V-8', 'SCS-4V-8', 4, 8192, 0, '{"scs:cpu-type": "shared-core", "scs:name-v1": "SCS-4V:8", "scs:name-v2": "SCS-4V-8"}'),
    ('SCS-8V-16', 'SCS-8V-16', 8, 16384, 0, '{"scs:cpu-type": "shared-core", "scs:name-v1": "SCS-8V:16", "scs:name-v2": "SCS-8V-16"}'),
    ('SCS-16V-32', 'SCS-16V-32', 16, 32768, 0, '{"scs:cpu-type": "shared-core", "scs:name-v1": "SCS-16V:32", "scs:name-v2": "SCS-16V-32"}'),
    ('SCS-1V-8', 'SCS-1V-8', 1, 8192, 0, '{"scs:cpu-type": "shared-core", "scs:name-v1": "SCS-1V:8", "scs:name-v2": "SCS-1V-8"}'),
    ('SCS-2V-16', 'SCS-2V-16', 2, 16384, 0, '{"scs:cpu-type": "shared-core", "scs:name-v1": "SCS-2V:16", "scs:name-v2": "SCS-2V-16"}'),
    ('SCS-4V-32', 'SCS-4V-32', 4, 32768, 0, '{"scs:cpu-type": "shared-core", "scs:name-v1": "SCS-4V:32", "scs:name-v2": "SCS-4V-32"}'),
    ('SCS-1L-1', 'SCS-1L-1', 1, 1024, 0, '{"scs:cpu-type": "crowded-core", "scs:name-v1": "SCS-1L:1", "scs:name-v2": "SCS-1L-1"}');
