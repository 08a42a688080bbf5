// SPDX-License-Identifier: GPL-2.0

//! The plot of idle pages over time: a panel for each cgroup, one above the other, so that it can
//! be seen whose pages went and whose stayed.

use anyhow::{anyhow, Result};
use binder_page::{GRID, SERIES, TEXT};
use plotters::{
    coord::types::{RangedCoordf64, RangedCoordu64},
    prelude::*,
};

use crate::{sampler::History, shrinker::Counts};

/// Like those of [`binder_page`], a stand-in.
const MARK: RGBColor = RGBColor(0xD9, 0x48, 0x0F);

const PANEL_HEIGHT: u32 = 92;
const TOP: u32 = 26;
const BOTTOM: u32 = 28;
const LEFT: u32 = 44;

/// A curve of the plot.
pub struct Curve<'a> {
    pub name: &'a str,
    pub idle: Box<dyn Fn(&Counts) -> u64 + 'a>,
}

type Panel<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordu64>>;

/// Draws the plot for a page `width` pixels wide. Text keeps its size, whatever the width.
pub fn svg(history: &History, curves: &[Curve<'_>], width: u32) -> Result<String> {
    let panels = u32::try_from(curves.len())?;
    let height = TOP + panels * PANEL_HEIGHT + BOTTOM;
    let mut text = String::new();
    draw(history, curves, &mut text, (width, height)).map_err(|e| anyhow!("plot: {e}"))?;
    Ok(text)
}

fn draw(
    history: &History,
    curves: &[Curve<'_>],
    text: &mut String,
    size: (u32, u32),
) -> Result<(), Box<dyn std::error::Error>> {
    let end = history.samples.last().map_or(1.0, |sample| sample.0);
    let root = SVGBackend::with_string(text, size).into_drawing_area();
    let (_, body) = root.split_vertically(TOP);
    let (body, _) = body.split_vertically(size.1 - TOP - BOTTOM);
    let areas = body.split_evenly((curves.len(), 1));
    // One scale for all, so that the panels can be compared; with headroom for the names.
    let idle = |curve: &Curve<'_>| -> Vec<(f64, u64)> {
        let samples = history.samples.iter();
        samples
            .map(|(at, counts)| (*at, (curve.idle)(counts)))
            .collect()
    };
    let peak_of = |points: &[(f64, u64)]| points.iter().map(|point| point.1).max().unwrap_or(0);
    let highest = curves.iter().map(|curve| peak_of(&idle(curve))).max();
    let top = highest.unwrap_or(0).max(4) * 7 / 5;
    for (index, (curve, area)) in curves.iter().zip(&areas).enumerate() {
        let points = idle(curve);
        let peak = peak_of(&points);
        let mut panel = ChartBuilder::on(area)
            .margin_top(6)
            .margin_bottom(4)
            .margin_right(12)
            .set_label_area_size(LabelAreaPosition::Left, LEFT)
            .build_cartesian_2d(0.0..end, 0..top)?;
        panel
            .configure_mesh()
            .disable_x_mesh()
            .disable_x_axis()
            .y_labels(3)
            .axis_style(GRID)
            .bold_line_style(GRID)
            .light_line_style(TRANSPARENT)
            .label_style(("sans-serif", 12, &TEXT))
            .draw()?;
        marks(&mut panel, history, top)?;
        panel.draw_series(
            AreaSeries::new(points.iter().copied(), 0, SERIES.mix(0.25))
                .border_style(SERIES.stroke_width(2)),
        )?;
        let name = format!("{} (peak {peak})", curve.name);
        let style = ("sans-serif", 13)
            .into_font()
            .style(FontStyle::Bold)
            .color(&TEXT);
        panel
            .plotting_area()
            .draw(&Text::new(name, (end * 0.008, top), style))?;
        if index == 0 {
            mark_numbers(&root, &panel, history)?;
        }
        if index + 1 == curves.len() {
            time_axis(&root, &panel, end, size.1)?;
        }
    }
    root.present()?;
    Ok(())
}

/// A vertical line for each step, through the panel.
fn marks(
    panel: &mut Panel<'_, '_>,
    history: &History,
    top: u64,
) -> Result<(), Box<dyn std::error::Error>> {
    panel.draw_series(history.marks.iter().map(|mark| {
        PathElement::new(vec![(mark.seconds, 0), (mark.seconds, top)], MARK.mix(0.7))
    }))?;
    Ok(())
}

/// The number of each step, above the first panel; its name is in a list below the plot.
fn mark_numbers(
    root: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    panel: &Panel<'_, '_>,
    history: &History,
) -> Result<(), Box<dyn std::error::Error>> {
    let style = ("sans-serif", 12)
        .into_font()
        .style(FontStyle::Bold)
        .color(&MARK);
    for (number, mark) in (1..).zip(&history.marks) {
        let (x, _) = panel.backend_coord(&(mark.seconds, 0));
        root.draw(&Text::new(format!("{number}"), (x - 3, 12), style.clone()))?;
    }
    Ok(())
}

/// Seconds, below the last panel.
fn time_axis(
    root: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    panel: &Panel<'_, '_>,
    end: f64,
    height: u32,
) -> Result<(), Box<dyn std::error::Error>> {
    let style = ("sans-serif", 12).into_font().color(&TEXT);
    let y = i32::try_from(height - BOTTOM)? + 6;
    let step = [0.5, 1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .find(|step| end / step <= 8.0)
        .unwrap_or(20.0);
    let mut at = 0.0;
    while at <= end {
        let (x, _) = panel.backend_coord(&(at, 0));
        root.draw(&Text::new(format!("{at} s"), (x - 4, y), style.clone()))?;
        at += step;
    }
    Ok(())
}
