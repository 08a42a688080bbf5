// SPDX-License-Identifier: GPL-2.0

//! What the reports of the demo and of the benchmarks have in common: a page of HTML that needs
//! nothing else, for wide and narrow screens, light and dark.

use plotters::style::RGBColor;
use std::fmt::Display;

const CSS: &str = include_str!("page.css");

/// Stand-ins for plots, for which the style sheet has the colours of the reader's theme.
pub const TEXT: RGBColor = RGBColor(0x00, 0x00, 0x00);
pub const GRID: RGBColor = RGBColor(0xCC, 0xCC, 0xCC);
pub const SERIES: RGBColor = RGBColor(0x0B, 0x6B, 0xCB);

/// Widths in pixels of the two drawings of a plot.
const WIDTHS: [(&str, u32); 2] = [("wide", 960), ("narrow", 420)];

/// Begins a page, whose own style sheet comes after the common one.
pub fn begin(title: &str, css: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{}</title>\n<style>\n{CSS}{css}</style>\n",
        escape(title)
    )
}

/// A plot, drawn once for each kind of screen by a function that is given the width.
///
/// # Errors
///
/// Those of `draw`.
pub fn plot<E>(mut draw: impl FnMut(u32) -> Result<String, E>) -> Result<String, E> {
    WIDTHS
        .iter()
        .map(|&(class, width)| {
            Ok(draw(width)?.replacen("<svg ", &format!("<svg class=\"{class}\" "), 1))
        })
        .collect()
}

/// Terms and what is said of them, the latter as HTML.
pub fn terms<T: Display, D: Display>(terms: impl IntoIterator<Item = (T, D)>) -> String {
    let terms: String = terms
        .into_iter()
        .map(|(term, text)| format!("<dt>{term}<dd>{text}\n"))
        .collect();
    format!("<dl>\n{terms}</dl>\n")
}

/// Text as HTML.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
