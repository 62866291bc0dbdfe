//! Steps with their times: spinners and bars on a terminal, plain lines elsewhere.

use std::fmt::Write as _;
use std::io::{IsTerminal, stderr};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// A run of steps.
#[derive(Debug)]
pub struct Steps {
    screen: Option<MultiProgress>,
    finished: Mutex<Vec<(String, Duration)>>,
}

impl Default for Steps {
    fn default() -> Self {
        let screen = stderr().is_terminal().then(MultiProgress::new);
        Self {
            screen,
            finished: Mutex::default(),
        }
    }
}

impl Steps {
    /// A step begins.
    pub fn start(&self, name: &str) -> Step<'_> {
        let bar = self.screen.as_ref().map(|screen| {
            let bar = screen.add(ProgressBar::new_spinner());
            bar.set_style(style("{spinner} {prefix}  {elapsed}  {wide_msg}"));
            bar.set_prefix(name.to_owned());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        if bar.is_none() {
            eprintln!("…  {name}");
        }
        Step {
            steps: self,
            name: name.to_owned(),
            bar,
            began: Instant::now(),
            shown: Mutex::new(Instant::now()),
        }
    }

    /// Says something above the bars.
    pub fn say(&self, text: &str) {
        match &self.screen {
            Some(screen) => screen.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }

    /// Every finished step and its time.
    pub fn table(&self) -> String {
        let finished = self.finished.lock().unwrap_or_else(|e| e.into_inner());
        let width = finished
            .iter()
            .map(|(name, _)| name.chars().count())
            .max()
            .unwrap_or(0);
        let mut text = String::new();
        for (name, took) in finished.iter() {
            let _ = writeln!(text, "  {name:width$}  {:>8.2} s", took.as_secs_f64());
        }
        text
    }

    /// The sum of all finished steps.
    pub fn total(&self) -> Duration {
        self.finished
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .iter()
            .map(|(_, took)| *took)
            .sum()
    }
}

/// A step under way. Dropped without `done`, it failed.
#[derive(Debug)]
pub struct Step<'a> {
    steps: &'a Steps,
    name: String,
    bar: Option<ProgressBar>,
    began: Instant,
    shown: Mutex<Instant>,
}

impl Step<'_> {
    /// How far it is.
    pub fn at(&self, done: u64, total: u64, what: &str) {
        match &self.bar {
            Some(bar) => {
                if bar.length() != Some(total) {
                    bar.set_style(style(
                        "{spinner} {prefix}  {elapsed}  [{bar:30}] {pos}/{len}  {wide_msg}",
                    ));
                    bar.set_length(total);
                }
                bar.set_position(done);
                bar.set_message(what.to_owned());
            }
            None => {
                let mut shown = self.shown.lock().unwrap_or_else(|e| e.into_inner());
                if shown.elapsed() > Duration::from_secs(15) {
                    *shown = Instant::now();
                    eprintln!("   {}: {done}/{total} {what}", self.name);
                }
            }
        }
    }

    /// It ended well.
    pub fn done(mut self, note: &str) -> Duration {
        let took = self.began.elapsed();
        let finished = self.steps.finished.lock();
        finished
            .unwrap_or_else(|e| e.into_inner())
            .push((self.name.clone(), took));
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        let gap = if note.is_empty() { "" } else { "  " };
        self.steps.say(&format!(
            "✓  {}  {:.2} s{gap}{note}",
            self.name,
            took.as_secs_f64()
        ));
        self.name.clear();
        took
    }
}

impl Drop for Step<'_> {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        if !self.name.is_empty() {
            self.steps.say(&format!(
                "✗  {}  {:.2} s",
                self.name,
                self.began.elapsed().as_secs_f64()
            ));
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}
