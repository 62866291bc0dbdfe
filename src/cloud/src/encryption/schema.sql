-- Keys of disks. Each is encrypted under the one above it; the root key is not in the database.
CREATE TABLE encryption_domains (
    domain_id TEXT NOT NULL PRIMARY KEY,
    -- Under the root key.
    wrapped BLOB NOT NULL,
    -- Rises when the key is exchanged.
    version INTEGER NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;

CREATE TABLE encryption_projects (
    project_id TEXT NOT NULL PRIMARY KEY,
    domain_id TEXT NOT NULL,
    -- Under the domain's key.
    wrapped BLOB NOT NULL,
    version INTEGER NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;
CREATE INDEX encryption_projects_by_domain ON encryption_projects (domain_id);

-- One key for all disks that share blocks: an image in a project, with what descends from it. A volume that went to another project
-- left its key in both.
CREATE TABLE encryption_lineages (
    lineage TEXT NOT NULL,
    project_id TEXT NOT NULL,
    image_id TEXT,
    -- Under the project's key.
    wrapped BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    -- When something of it was last made or removed.
    used_at INTEGER NOT NULL,
    PRIMARY KEY (lineage, project_id)
) STRICT;
CREATE INDEX encryption_lineages_by_project ON encryption_lineages (project_id, image_id);

-- What is encrypted with a lineage's key: volumes, snapshots and backups by their ids. One whose bytes are being exchanged has two.
CREATE TABLE encryption_files (
    file_id TEXT NOT NULL,
    lineage TEXT NOT NULL,
    project_id TEXT NOT NULL,
    PRIMARY KEY (file_id, lineage)
) STRICT;
CREATE INDEX encryption_files_by_lineage ON encryption_files (lineage, project_id);
CREATE INDEX encryption_files_by_project ON encryption_files (project_id);
