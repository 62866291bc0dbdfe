CREATE TABLE image_catalogue (
    -- As in the catalogue: also the image's name.
    name TEXT NOT NULL PRIMARY KEY,
    -- 'available', 'fetching', 'unavailable', 'retired'.
    state TEXT NOT NULL,
    -- Why it is not available, or not fresh.
    reason TEXT NOT NULL,
    -- When it was last looked at, and last found to be fresh. Microseconds since 1970.
    checked_at INTEGER NOT NULL,
    fresh_at INTEGER
) STRICT;

CREATE TABLE image_catalogue_images (
    image_id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    -- What the vendor says of its bytes, in hexadecimal digits.
    digest TEXT NOT NULL,
    -- 1: it is being fetched, and nobody sees it.
    fetching INTEGER NOT NULL,
    -- Since when there is a newer one.
    superseded_at INTEGER
) STRICT;
CREATE INDEX image_catalogue_images_by_name ON image_catalogue_images (name);
