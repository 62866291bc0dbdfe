//! Kernel modules and what they depend on, read from the modules themselves: Debian's package leaves `modules.dep` to
//! a script of its installation.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// One module.
#[derive(Debug, Clone)]
pub struct Module {
    /// Its name, with underscores.
    pub name: String,
    /// Where it lies.
    pub path: PathBuf,
    /// The modules that it needs.
    pub depends: Vec<String>,
}

/// All modules of a kernel, by name; dependencies are read when they are asked for.
#[derive(Debug)]
pub struct Modules {
    paths: BTreeMap<String, PathBuf>,
}

impl Modules {
    /// The modules of an unpacked kernel's package.
    pub fn of(package: &Path, release: &str) -> Result<Self> {
        Self::scan(&package.join(format!("lib/modules/{release}/kernel")))
    }

    /// Finds all modules below a folder.
    fn scan(folder: &Path) -> Result<Self> {
        let mut paths = BTreeMap::new();
        let mut folders = vec![folder.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
                let path = entry?.path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|e| e == "ko")
                    && let Some(stem) = path.file_stem().and_then(|s| s.to_str())
                {
                    paths.insert(stem.replace('-', "_"), path);
                }
            }
        }
        Ok(Self { paths })
    }

    /// These modules and all that they need, in an order in which they can be loaded.
    pub fn closure(&self, names: &[&str]) -> Result<Vec<Module>> {
        let mut order = Vec::new();
        for name in names {
            self.visit(name, &mut order)?;
        }
        Ok(order)
    }

    fn visit(&self, name: &str, order: &mut Vec<Module>) -> Result<()> {
        if order.iter().any(|m| m.name == name) {
            return Ok(());
        }
        let path = self
            .paths
            .get(name)
            .with_context(|| format!("this kernel has no module {name}"))?;
        let depends = depends(&fs::read(path)?);
        for other in &depends {
            self.visit(other, order)?;
        }
        order.push(Module {
            name: name.to_owned(),
            path: path.clone(),
            depends,
        });
        Ok(())
    }
}

/// The `depends=` entry of the `.modinfo` section: NUL-terminated `key=value` strings.
fn depends(module: &[u8]) -> Vec<String> {
    let key = b"\0depends=";
    let Some(at) = module.windows(key.len()).position(|w| w == key) else {
        return Vec::new();
    };
    let value = module[at + key.len()..]
        .split(|b| *b == 0)
        .next()
        .unwrap_or_default();
    String::from_utf8_lossy(value)
        .split(',')
        .filter(|n| !n.is_empty())
        .map(|n| n.replace('-', "_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_module_needs_is_loaded_before_it() {
        let folder = tempfile::tempdir().unwrap();
        for (name, needs) in [
            ("virtio-blk", "virtio,virtio_ring"),
            ("virtio", ""),
            ("virtio_ring", "virtio"),
            ("x", ""),
        ] {
            fs::write(
                folder.path().join(format!("{name}.ko")),
                format!("a=b\0depends={needs}\0c=d\0"),
            )
            .unwrap();
        }
        let modules = Modules::scan(folder.path()).unwrap();
        let order: Vec<_> = modules
            .closure(&["virtio_blk"])
            .unwrap()
            .into_iter()
            .map(|m| m.name)
            .collect();
        assert_eq!(order, ["virtio", "virtio_ring", "virtio_blk"]);
        assert!(modules.closure(&["absent"]).is_err());
    }
}
