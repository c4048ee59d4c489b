//! What was measured, and how it is printed.

use std::io::Write as _;

use anyhow::Context as _;

/// Measured values by name, several of each. Each is told on standard error when it comes, since a benchmark takes
/// minutes; the medians go to standard output at the end.
#[derive(Default)]
pub(crate) struct Figures {
    figures: Vec<Figure>,
}

struct Figure {
    name: String,
    unit: &'static str,
    values: Vec<f64>,
}

impl Figures {
    /// Adds a value.
    pub(crate) fn add(&mut self, name: impl Into<String>, value: f64, unit: &'static str) {
        let name = name.into();
        eprintln!("{name} {} {unit}", written(value));
        match self.figures.iter_mut().find(|figure| figure.name == name) {
            Some(figure) => figure.values.push(value),
            None => self.figures.push(Figure { name, unit, values: vec![value] }),
        }
    }

    /// The last value of that name.
    pub(crate) fn last(&self, name: &str) -> Option<f64> {
        self.figures.iter().find(|figure| figure.name == name)?.values.last().copied()
    }

    /// Adds the ratio of the last values of two names, where both were measured.
    pub(crate) fn add_ratio(&mut self, name: impl Into<String>, numerator: &str, denominator: &str) {
        if let (Some(numerator), Some(denominator)) = (self.last(numerator), self.last(denominator)) {
            self.add(name, numerator / denominator, "ratio");
        }
    }

    /// Prints the median of each, in the order in which they came first.
    pub(crate) fn print(&self) -> anyhow::Result<()> {
        let mut output = std::io::stdout().lock();
        for figure in &self.figures {
            let median = percentile(&figure.values, 50.0);
            writeln!(output, "{} {} {}", figure.name, written(median), figure.unit)
                .context("printing the figures")?;
        }
        Ok(())
    }
}

fn written(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value}") } else { format!("{value:.3}") }
}

/// The value below which so many percent of the values are; between two values, what lies in proportion between them.
/// Not a number where there is none.
pub(crate) fn percentile(values: &[f64], percent: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let place = percent / 100.0 * last as f64;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    below + (above - below) * place.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_lie_between_the_values() {
        assert_eq!(percentile(&[3.0, 1.0, 2.0], 50.0), 2.0);
        assert_eq!(percentile(&[1.0, 2.0, 3.0, 4.0], 50.0), 2.5);
        assert_eq!(percentile(&[5.0], 99.0), 5.0);
        assert!(percentile(&[], 50.0).is_nan());
    }

    #[test]
    fn whole_numbers_are_written_whole() {
        assert_eq!(written(7.0), "7");
        assert_eq!(written(0.93456), "0.935");
    }
}
