//! One figure and its report.

use std::fmt;
use std::fs;

use allod_tests::paths;
use anyhow::Result;
use serde::Serialize;

/// A figure.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figure {
    /// Its name, such as `api.token.validate`.
    pub name: String,
    /// What was measured.
    pub value: f64,
    /// Of what.
    pub unit: String,
    /// What the same machine does without us, measured in the same call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<Peer>,
}

/// What a figure is compared with.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Peer {
    /// What it is.
    pub name: String,
    /// What was measured, in the figure's unit.
    pub value: f64,
    /// The figure divided by the peer's.
    pub ratio: f64,
}

impl Figure {
    /// A figure that stands alone.
    pub fn new(name: &str, value: f64, unit: &str) -> Self {
        Self {
            name: name.to_owned(),
            value,
            unit: unit.to_owned(),
            peer: None,
        }
    }

    /// With what it is compared.
    pub fn versus(mut self, name: &str, value: f64) -> Self {
        self.peer = Some(Peer {
            name: name.to_owned(),
            value,
            ratio: self.value / value,
        });
        self
    }

    /// Prints it and writes its file.
    pub fn report(&self) -> Result<()> {
        println!("{self}");
        let folder = paths::target().join("bench");
        fs::create_dir_all(&folder)?;
        fs::write(
            folder.join(format!("{}.json", self.name)),
            serde_json::to_string_pretty(self)? + "\n",
        )?;
        Ok(())
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bench {} {:.3} {}", self.name, self.value, self.unit)?;
        if let Some(peer) = &self.peer {
            write!(f, " vs {} {:.3} ratio {:.3}", peer.name, peer.value, peer.ratio)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_one_line() {
        assert_eq!(
            Figure::new("api.start", 0.25, "s").to_string(),
            "bench api.start 0.250 s"
        );
        let figure = Figure::new("api.writes.1", 50.0, "/s").versus("fsync", 100.0);
        assert_eq!(
            figure.to_string(),
            "bench api.writes.1 50.000 /s vs fsync 100.000 ratio 0.500"
        );
    }
}
