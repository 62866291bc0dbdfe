-- Placement: what nodes have and what is taken of it. Times are microseconds since 1970 (UTC).
CREATE TABLE placement_providers (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    generation INTEGER NOT NULL,
    parent_id TEXT,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX placement_providers_by_name ON placement_providers (name);

CREATE TABLE placement_inventories (
    provider_id TEXT NOT NULL,
    resource_class TEXT NOT NULL,
    total INTEGER NOT NULL,
    reserved INTEGER NOT NULL,
    min_unit INTEGER NOT NULL,
    max_unit INTEGER NOT NULL,
    step_size INTEGER NOT NULL,
    allocation_ratio REAL NOT NULL,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (provider_id, resource_class)
) STRICT;

CREATE TABLE placement_consumers (
    id TEXT NOT NULL PRIMARY KEY,
    project_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    type TEXT NOT NULL,
    generation INTEGER NOT NULL
) STRICT;
CREATE INDEX placement_consumers_by_project ON placement_consumers (project_id);

CREATE TABLE placement_allocations (
    consumer_id TEXT NOT NULL,
    provider_id TEXT NOT NULL,
    resource_class TEXT NOT NULL,
    used INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (consumer_id, provider_id, resource_class)
) STRICT;
CREATE INDEX placement_allocations_by_provider ON placement_allocations (provider_id, resource_class);

-- Those that operators made; the standard ones are known.
CREATE TABLE placement_resource_classes (
    name TEXT NOT NULL PRIMARY KEY
) STRICT;

CREATE TABLE placement_traits (
    name TEXT NOT NULL PRIMARY KEY
) STRICT;

CREATE TABLE placement_provider_traits (
    provider_id TEXT NOT NULL,
    trait TEXT NOT NULL,
    PRIMARY KEY (provider_id, trait)
) STRICT;

CREATE TABLE placement_provider_aggregates (
    provider_id TEXT NOT NULL,
    aggregate_id TEXT NOT NULL,
    PRIMARY KEY (provider_id, aggregate_id)
) STRICT;
