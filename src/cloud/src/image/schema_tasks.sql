CREATE TABLE image_tasks (
    -- A UUID with hyphens.
    id TEXT NOT NULL PRIMARY KEY,
    -- 'api_image_import': an image's import; 'import': of the tasks' own interface, which makes the image, too.
    type TEXT NOT NULL,
    -- 'processing', 'success', 'failure'.
    status TEXT NOT NULL,
    -- The project.
    owner TEXT NOT NULL,
    user_id TEXT NOT NULL,
    image_id TEXT,
    request_id TEXT NOT NULL,
    -- JSON: what was asked for, and what came of it.
    input TEXT NOT NULL,
    result TEXT,
    -- Why it failed, in the tenant's words.
    message TEXT NOT NULL,
    -- Microseconds since 1970.
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    -- Of those that have ended: when they are forgotten.
    expires_at INTEGER
) STRICT;
CREATE INDEX image_tasks_by_image ON image_tasks (image_id);
CREATE INDEX image_tasks_by_owner ON image_tasks (owner, created_at);
