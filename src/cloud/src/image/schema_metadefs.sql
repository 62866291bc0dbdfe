CREATE TABLE metadef_namespaces (
    namespace TEXT NOT NULL PRIMARY KEY,
    display_name TEXT,
    description TEXT,
    -- 'public', 'private'.
    visibility TEXT NOT NULL,
    protected INTEGER NOT NULL,
    -- The project.
    owner TEXT NOT NULL,
    -- Microseconds since 1970.
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL
) STRICT;

-- Which kinds of resources a namespace's definitions are for.
CREATE TABLE metadef_resource_types (
    namespace TEXT NOT NULL,
    name TEXT NOT NULL,
    prefix TEXT,
    properties_target TEXT,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (namespace, name)
) STRICT;

-- Objects, properties and tags.
CREATE TABLE metadef_items (
    namespace TEXT NOT NULL,
    -- 'object', 'property', 'tag'.
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    -- A JSON object: all but the name.
    document TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (namespace, kind, name)
) STRICT;
