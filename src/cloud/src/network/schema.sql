-- Every resource begins with the same columns (`rows::Meta`). Booleans are 0 or 1, lists are JSON, addresses are text;
-- only `network_allocations.address` is bytes, so that it sorts as a number.

CREATE TABLE networks (
    id TEXT NOT NULL PRIMARY KEY,
    project_id TEXT NOT NULL,
    name TEXT NOT NULL,
    description TEXT NOT NULL,
    tags TEXT NOT NULL,
    revision INTEGER NOT NULL,
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    admin_state_up INTEGER NOT NULL,
    shared INTEGER NOT NULL,
    external INTEGER NOT NULL,
    is_default INTEGER NOT NULL,
    mtu INTEGER NOT NULL,
    vni INTEGER NOT NULL,
    port_security_enabled INTEGER NOT NULL,
    dns_domain TEXT NOT NULL,
    zone_hints TEXT NOT NULL,
    uplink TEXT NOT NULL
) STRICT;
CREATE INDEX networks_by_project ON networks (project_id);
CREATE INDEX networks_by_vni ON networks (vni);

-- Projects (`*`: all) that may use another's network.
CREATE TABLE network_rbac (
    id TEXT NOT NULL PRIMARY KEY,
    project_id TEXT NOT NULL,
    name TEXT NOT NULL,
    description TEXT NOT NULL,
    tags TEXT NOT NULL,
    revision INTEGER NOT NULL,
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    object_id TEXT NOT NULL,
    target TEXT NOT NULL,
    UNIQUE (object_id, target)
) STRICT;
CREATE INDEX network_rbac_by_target ON network_rbac (target);
CREATE INDEX network_rbac_by_project ON network_rbac (project_id);

CREATE TABLE subnets (
    id TEXT NOT NULL PRIMARY KEY,
    project_id TEXT NOT NULL,
    name TEXT NOT NULL,
    description TEXT NOT NULL,
    tags TEXT NOT NULL,
    revision INTEGER NOT NULL,
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    network_id TEXT NOT NULL,
    subnet_pool_id TEXT,
    cidr TEXT NOT NULL,
    gateway_ip TEXT,
    enable_dhcp INTEGER NOT NULL,
    dhcp_server TEXT,
    pools TEXT NOT NULL,
    dns_nameservers TEXT NOT NULL,
    host_routes TEXT NOT NULL,
    ipv6_ra_mode TEXT,
    ipv6_address_mode TEXT
) STRICT;
CREATE INDEX subnets_by_network ON subnets (network_id);
CREATE INDEX subnets_by_project ON subnets (project_id);
CREATE INDEX subnets_by_pool ON subnets (subnet_pool_id);

CREATE TABLE subnet_pools (
    id TEXT NOT NULL PRIMARY KEY,
    project_id TEXT NOT NULL,
    name TEXT NOT NULL,
    description TEXT NOT NULL,
    tags TEXT NOT NULL,
    revision INTEGER NOT NULL,
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    ip_version INTEGER NOT NULL,
    prefixes TEXT NOT NULL,
    default_prefixlen INTEGER NOT NULL,
    min_prefixlen INTEGER NOT NULL,
    max_prefixlen INTEGER NOT NULL,
    shared INTEGER NOT NULL,
    is_default INTEGER NOT NULL,
    default_quota INTEGER,
    address_scope_id TEXT
) STRICT;
CREATE INDEX subnet_pools_by_project ON subnet_pools (project_id);
CREATE INDEX subnet_pools_by_scope ON subnet_pools (address_scope_id);

CREATE TABLE address_scopes (
    id TEXT NOT NULL PRIMARY KEY,
    project_id TEXT NOT NULL,
    name TEXT NOT NULL,
    description TEXT NOT NULL,
    tags TEXT NOT NULL,
    revision INTEGER NOT NULL,
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    ip_version INTEGER NOT NULL,
    shared INTEGER NOT NULL
) STRICT;
CREATE INDEX address_scopes_by_project ON address_scopes (project_id);

CREATE TABLE ports (
    id TEXT NOT NULL PRIMARY KEY,
    project_id TEXT NOT NULL,
    name TEXT NOT NULL,
    description TEXT NOT NULL,
    tags TEXT NOT NULL,
    revision INTEGER NOT NULL,
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    network_id TEXT NOT NULL,
    mac TEXT NOT NULL,
    admin_state_up INTEGER NOT NULL,
    device_id TEXT NOT NULL,
    device_owner TEXT NOT NULL,
    server_id TEXT NOT NULL,
    nic INTEGER NOT NULL,
    keep INTEGER NOT NULL,
    port_security_enabled INTEGER NOT NULL,
    address_pairs TEXT NOT NULL,
    dhcp_options TEXT NOT NULL,
    dns_name TEXT NOT NULL,
    host TEXT NOT NULL,
    profile TEXT NOT NULL
) STRICT;
CREATE INDEX ports_by_network ON ports (network_id, mac);
CREATE INDEX ports_by_project ON ports (project_id);
CREATE INDEX ports_by_device ON ports (device_id);
CREATE INDEX ports_by_server ON ports (server_id);

CREATE TABLE network_allocations (
    subnet_id TEXT NOT NULL,
    address BLOB NOT NULL,
    owner_id TEXT NOT NULL,
    position INTEGER NOT NULL,
    PRIMARY KEY (subnet_id, address)
) STRICT;
CREATE INDEX network_allocations_by_owner ON network_allocations (owner_id);

CREATE TABLE port_security_groups (
    port_id TEXT NOT NULL,
    group_id TEXT NOT NULL,
    PRIMARY KEY (port_id, group_id)
) STRICT;
CREATE INDEX port_security_groups_by_group ON port_security_groups (group_id);

CREATE TABLE routers (
    id TEXT NOT NULL PRIMARY KEY,
    project_id TEXT NOT NULL,
    name TEXT NOT NULL,
    description TEXT NOT NULL,
    tags TEXT NOT NULL,
    revision INTEGER NOT NULL,
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    admin_state_up INTEGER NOT NULL,
    gateway_port_id TEXT,
    enable_snat INTEGER NOT NULL,
    routes TEXT NOT NULL,
    zone_hints TEXT NOT NULL
) STRICT;
CREATE INDEX routers_by_project ON routers (project_id);

CREATE TABLE floating_ips (
    id TEXT NOT NULL PRIMARY KEY,
    project_id TEXT NOT NULL,
    name TEXT NOT NULL,
    description TEXT NOT NULL,
    tags TEXT NOT NULL,
    revision INTEGER NOT NULL,
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    network_id TEXT NOT NULL,
    address TEXT NOT NULL,
    own_port_id TEXT NOT NULL,
    router_id TEXT,
    port_id TEXT,
    fixed_ip TEXT,
    dns_name TEXT NOT NULL,
    dns_domain TEXT NOT NULL
) STRICT;
CREATE INDEX floating_ips_by_project ON floating_ips (project_id);
CREATE INDEX floating_ips_by_port ON floating_ips (port_id);

CREATE TABLE security_groups (
    id TEXT NOT NULL PRIMARY KEY,
    project_id TEXT NOT NULL,
    name TEXT NOT NULL,
    description TEXT NOT NULL,
    tags TEXT NOT NULL,
    revision INTEGER NOT NULL,
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    stateful INTEGER NOT NULL,
    is_default INTEGER NOT NULL
) STRICT;
CREATE INDEX security_groups_by_project ON security_groups (project_id, name);

CREATE TABLE security_group_rules (
    id TEXT NOT NULL PRIMARY KEY,
    project_id TEXT NOT NULL,
    name TEXT NOT NULL,
    description TEXT NOT NULL,
    tags TEXT NOT NULL,
    revision INTEGER NOT NULL,
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    group_id TEXT NOT NULL,
    direction TEXT NOT NULL,
    ethertype TEXT NOT NULL,
    protocol TEXT,
    port_min INTEGER,
    port_max INTEGER,
    remote_prefix TEXT,
    remote_group_id TEXT
) STRICT;
CREATE INDEX security_group_rules_by_group ON security_group_rules (group_id);
CREATE INDEX security_group_rules_by_remote ON security_group_rules (remote_group_id);
CREATE INDEX security_group_rules_by_project ON security_group_rules (project_id);

-- What new groups begin with; `remote` is a group's id, or 'PARENT' for the new group itself.
CREATE TABLE default_security_group_rules (
    id TEXT NOT NULL PRIMARY KEY,
    project_id TEXT NOT NULL,
    name TEXT NOT NULL,
    description TEXT NOT NULL,
    tags TEXT NOT NULL,
    revision INTEGER NOT NULL,
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    direction TEXT NOT NULL,
    ethertype TEXT NOT NULL,
    protocol TEXT,
    port_min INTEGER,
    port_max INTEGER,
    remote_prefix TEXT,
    remote TEXT,
    in_default INTEGER NOT NULL,
    in_custom INTEGER NOT NULL
) STRICT;
-- Everything may leave; into the default group comes what its own members send. The operator may change these.
INSERT INTO default_security_group_rules
    (id, project_id, name, description, tags, revision, created_at, updated_at, direction, ethertype, remote,
     in_default, in_custom)
VALUES
    ('6d1f4c3a-c0a0-4b1c-9d9f-0f4b2f4c0101', '', '', 'Legacy default SG rule for egress traffic', '[]', 0,
     '2026-11-20T00:00:00Z', '2026-11-20T00:00:00Z', 'egress', 'IPv4', NULL, 1, 1),
    ('6d1f4c3a-c0a0-4b1c-9d9f-0f4b2f4c0102', '', '', 'Legacy default SG rule for egress traffic', '[]', 0,
     '2026-11-20T00:00:00Z', '2026-11-20T00:00:00Z', 'egress', 'IPv6', NULL, 1, 1),
    ('6d1f4c3a-c0a0-4b1c-9d9f-0f4b2f4c0103', '', '', 'Legacy default SG rule for ingress traffic', '[]', 0,
     '2026-11-20T00:00:00Z', '2026-11-20T00:00:00Z', 'ingress', 'IPv4', 'PARENT', 1, 0),
    ('6d1f4c3a-c0a0-4b1c-9d9f-0f4b2f4c0104', '', '', 'Legacy default SG rule for ingress traffic', '[]', 0,
     '2026-11-20T00:00:00Z', '2026-11-20T00:00:00Z', 'ingress', 'IPv6', 'PARENT', 1, 0);

CREATE TABLE network_quotas (
    project_id TEXT NOT NULL,
    resource TEXT NOT NULL,
    amount INTEGER NOT NULL,
    PRIMARY KEY (project_id, resource)
) STRICT;

-- What is, as the reconciler found it: apart from the rows above, which say what should be.
CREATE TABLE network_status (
    id TEXT NOT NULL PRIMARY KEY,
    active INTEGER NOT NULL
) STRICT;
