//! What a server starts with: its image's properties say it, in Glance's words. They count as they were when the server was
//! made of the image.

use std::collections::BTreeMap;

use model::machine::Boot;
use rusqlite::{Connection, OptionalExtension};
use uuid::Uuid;

use super::images;
use crate::{Context, Error, Result};

/// The command line of a kernel whose image names none, as Nova has it.
const COMMAND_LINE: &str = "root=/dev/vda console=tty0 console=ttyS0";
/// The longest command line in bytes (Linux, `COMMAND_LINE_SIZE` on x86).
const MAX_COMMAND_LINE: usize = 2048;

/// What these properties ask for. Kernel and initial RAM disk must be images that the caller may use.
///
/// # Errors
/// 400 if they ask for what cannot be.
pub(super) fn of_properties(
    conn: &Connection,
    ctx: &Context,
    properties: &BTreeMap<String, String>,
) -> Result<Boot> {
    let image = |key: &str| -> Result<Option<Uuid>> {
        let Some(text) = properties.get(key).filter(|text| !text.is_empty()) else {
            return Ok(None);
        };
        let id = text.parse().map_err(|_| {
            Error::BadRequest(format!(
                "Image is unacceptable: its {key} is not the id of an image."
            ))
        })?;
        images::find(conn, ctx, id).map(|image| Some(image.id))
    };
    if let Some(kernel) = image("kernel_id")? {
        let command_line = properties
            .get("os_command_line")
            .map_or(COMMAND_LINE, String::as_str);
        if command_line.len() >= MAX_COMMAND_LINE || command_line.contains('\0') {
            return Err(Error::BadRequest(format!(
                "Image is unacceptable: its os_command_line has more than {} bytes, or a zero byte.",
                MAX_COMMAND_LINE - 1
            )));
        }
        return Ok(Boot::Kernel {
            kernel,
            ramdisk: image("ramdisk_id")?,
            command_line: command_line.to_owned(),
        });
    }
    match properties.get("hw_firmware_type").map(String::as_str) {
        None | Some("bios") => Ok(Boot::Bios),
        Some("uefi") => Ok(Boot::Uefi),
        Some(_) => Err(Error::BadRequest(
            "Image is unacceptable: its hw_firmware_type is neither bios nor uefi.".into(),
        )),
    }
}

/// A server starts with this image's bytes, again at each start: the image must stay.
pub(crate) fn needs(conn: &Connection, image: Uuid) -> Result<bool> {
    let found = conn
        .prepare_cached(
            "SELECT 1 FROM compute_servers WHERE deleted = 0 AND (boot IS NOT NULL OR rescue IS NOT NULL) \
             AND ?1 IN (json_extract(boot, '$.kernel.kernel'), json_extract(boot, '$.kernel.ramdisk'), \
                 json_extract(rescue, '$.boot.kernel.kernel'), json_extract(rescue, '$.boot.kernel.ramdisk')) LIMIT 1",
        )?
        .query_row([image.to_string()], |_| Ok(()))
        .optional()?;
    Ok(found.is_some())
}
