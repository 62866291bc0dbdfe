//! The schema's steps, in order. A step that was released is never changed; new ones are appended.

use store::Step;

/// All steps.
pub const STEPS: &[Step] = &[
    Step {
        number: 1,
        name: "identity",
        sql: crate::identity::SCHEMA,
    },
    Step {
        number: 2,
        name: "image",
        sql: crate::image::SCHEMA,
    },
    Step {
        number: 3,
        name: "network",
        sql: crate::network::SCHEMA,
    },
    Step {
        number: 4,
        name: "compute",
        sql: crate::compute::SCHEMA,
    },
    Step {
        number: 5,
        name: "volume",
        sql: crate::volume::SCHEMA,
    },
    Step {
        number: 6,
        name: "placement",
        sql: crate::placement::SCHEMA,
    },
    Step {
        number: 7,
        name: "secret",
        sql: crate::secret::SCHEMA,
    },
    Step {
        number: 8,
        name: "compute: what servers start with",
        sql: crate::compute::SCHEMA_BOOT,
    },
    Step {
        number: 9,
        name: "encryption",
        sql: crate::encryption::SCHEMA,
    },
    Step {
        number: 10,
        name: "volume: what types say of encryption",
        sql: crate::volume::type_encryption::SCHEMA,
    },
    Step {
        number: 11,
        name: "volume: classes",
        sql: crate::volume::SCHEMA_CLASSES,
    },
    Step {
        number: 12,
        name: "image: tasks",
        sql: crate::image::SCHEMA_TASKS,
    },
    Step {
        number: 13,
        name: "image: metadata definitions",
        sql: crate::image::SCHEMA_METADEFS,
    },
    Step {
        number: 14,
        name: "image: the catalogue of vendors' images",
        sql: crate::image::SCHEMA_CATALOGUE,
    },
];
