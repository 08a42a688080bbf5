// SPDX-License-Identifier: GPL-2.0

//! The plot of a group of loads: a line for each load, with a mark for each kernel. The scale is
//! logarithmic, so that the same distance is the same ratio everywhere. Where the loads differ only in how many
//! buffers there are, curves instead, on a scale that begins with 0.

use crate::results::{Row, HEADS};
use binder_page::{GRID, SERIES, TEXT};
use plotters::{coord::Shift, prelude::*};
use std::error::Error;

/// Stand-ins, like those of [`binder_page`].
const COLOURS: [RGBColor; 3] = [
    SERIES,
    RGBColor(0xB4, 0x53, 0x09),
    RGBColor(0x7C, 0x3A, 0xED),
];

const LEGEND_HEIGHT: i32 = 24;
const ROW_HEIGHT: i32 = 40;
/// Of the numbers, and of what they are.
const AXIS_HEIGHT: i32 = 44;
const MARGIN: i32 = 28;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

/// Where values lie.
struct Scale {
    least: f64,
    most: f64,
    width: i32,
}

impl Scale {
    fn x(&self, value: f64) -> i32 {
        let share = (value / self.least).ln() / (self.most / self.least).ln();
        MARGIN + (share * f64::from(self.width - 2 * MARGIN)) as i32
    }

    /// Round values on the scale, no more than there is space for.
    fn ticks(&self) -> Vec<f64> {
        let steps: [&[f64]; 4] = [
            &[
                1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0,
            ],
            &[1.0, 1.5, 2.0, 3.0, 5.0, 7.0],
            &[1.0, 2.0, 5.0],
            &[1.0],
        ];
        let decades = self.least.log10().floor() as i32..=self.most.log10().ceil() as i32;
        let ticks = steps.map(|steps| -> Vec<f64> {
            decades
                .clone()
                .flat_map(|decade| steps.iter().map(move |step| step * 10f64.powi(decade)))
                .filter(|tick| (self.least..=self.most).contains(tick))
                .collect()
        });
        let fit = (self.width / 70) as usize;
        let chosen = ticks.iter().find(|ticks| ticks.len() <= fit);
        chosen.unwrap_or(&ticks[3]).clone()
    }
}

/// Draws the plot for a page `width` pixels wide, or nothing where nothing was measured.
///
/// # Errors
///
/// Those of plotters.
pub fn svg(rows: &[&Row], width: u32) -> Result<String> {
    let ranges = rows
        .iter()
        .flat_map(|row| &row.cells)
        .filter_map(|cell| cell.range());
    let ranges = ranges.filter(|range| range.0 > 0.0);
    let Some((least, most)) = ranges.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1))) else {
        return Ok(String::new());
    };
    if rows[0].load.starts_with("growth") {
        return curves(rows, width, most);
    }
    let scale = Scale {
        least: least / 1.15,
        most: most * 1.15,
        width: i32::try_from(width)?,
    };
    let bottom = LEGEND_HEIGHT + ROW_HEIGHT * i32::try_from(rows.len())?;
    let height = u32::try_from(bottom + AXIS_HEIGHT)?;
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, (width, height)).into_drawing_area();
        legend(&area)?;
        axis(&area, &scale, bottom)?;
        caption(&area, &format!("{}, logarithmic", rows[0].unit()), bottom)?;
        for (row, top) in rows
            .iter()
            .zip((LEGEND_HEIGHT..).step_by(ROW_HEIGHT as usize))
        {
            line(&area, &scale, row, top)?;
        }
        area.present()?;
    }
    Ok(text)
}

const CURVES_HEIGHT: i32 = 240;

/// Where a value that is `share` of the largest lies.
fn height(share: f64) -> i32 {
    LEGEND_HEIGHT + ((1.0 - share) * f64::from(CURVES_HEIGHT)) as i32
}

fn curves(rows: &[&Row], width: u32, most: f64) -> Result<String> {
    use plotters::style::text_anchor::{HPos, Pos, VPos};
    let step = (i32::try_from(width)? - 3 * MARGIN) / i32::try_from(rows.len())?.max(2);
    let columns = || (2 * MARGIN + step / 2..).step_by(step as usize);
    let bottom = LEGEND_HEIGHT + CURVES_HEIGHT;
    let mut text = String::new();
    {
        let size = (width, u32::try_from(bottom + AXIS_HEIGHT)?);
        let area = SVGBackend::with_string(&mut text, size).into_drawing_area();
        legend(&area)?;
        let style = ("sans-serif", 12).into_text_style(&area).color(&TEXT);
        let centred = style.pos(Pos::new(HPos::Center, VPos::Top));
        // The largest power of ten that isn't above all, or half of it, from 0 on.
        let decade = 10f64.powf(most.log10().floor());
        let tick = if most / decade < 2.0 {
            decade / 2.0
        } else {
            decade
        };
        let most = most * 1.05;
        for tick in (0..)
            .map(|n| f64::from(n) * tick)
            .take_while(|tick| *tick < most)
        {
            let y = height(tick / most);
            let ends = vec![(2 * MARGIN, y), (i32::try_from(width)? - MARGIN / 2, y)];
            area.draw(&PathElement::new(ends, GRID))?;
            area.draw(&Text::new(short(tick), (MARGIN, y - 6), centred.clone()))?;
        }
        for (row, x) in rows.iter().zip(columns()) {
            let count = row.group().1.split(' ').next().unwrap_or_default();
            area.draw(&Text::new(
                count.to_string(),
                (x, bottom + 6),
                centred.clone(),
            ))?;
        }
        let unit = rows[0].unit();
        caption(&area, &format!("{unit}, by buffers in use"), bottom)?;
        for kernel in (0..HEADS.len()).rev() {
            let points: Vec<_> = rows
                .iter()
                .zip(columns())
                .filter_map(|(row, x)| Some((x, height(row.cells[kernel].median()? / most))))
                .collect();
            let style = COLOURS[kernel].stroke_width(2);
            area.draw(&PathElement::new(points.clone(), style))?;
            for point in points {
                mark(&area, kernel, point)?;
            }
        }
        area.present()?;
    }
    Ok(text)
}

fn legend(area: &Area<'_>) -> Result {
    for (kernel, x) in (0..HEADS.len()).zip((8..).step_by(80)) {
        mark(area, kernel, (x, 10))?;
        let style = ("sans-serif", 13).into_font().color(&TEXT);
        area.draw(&Text::new(HEADS[kernel], (x + 10, 4), style))?;
    }
    Ok(())
}

/// What the numbers are, below them.
fn caption(area: &Area<'_>, text: &str, bottom: i32) -> Result {
    use plotters::style::text_anchor::{HPos, Pos, VPos};
    let style = ("sans-serif", 12).into_text_style(area).color(&TEXT);
    let style = style.pos(Pos::new(HPos::Center, VPos::Top));
    let middle = i32::try_from(area.dim_in_pixel().0)? / 2;
    area.draw(&Text::new(text.to_string(), (middle, bottom + 26), style))?;
    Ok(())
}

fn axis(area: &Area<'_>, scale: &Scale, bottom: i32) -> Result {
    use plotters::style::text_anchor::{HPos, Pos, VPos};
    let style = ("sans-serif", 12).into_text_style(area).color(&TEXT);
    let style = style.pos(Pos::new(HPos::Center, VPos::Top));
    for tick in scale.ticks() {
        let x = scale.x(tick);
        area.draw(&PathElement::new(
            vec![(x, LEGEND_HEIGHT), (x, bottom)],
            GRID,
        ))?;
        area.draw(&Text::new(short(tick), (x, bottom + 6), style.clone()))?;
    }
    Ok(())
}

/// A row: its name, and the kernels below it; of several runs, the median and how far they lie apart.
fn line(area: &Area<'_>, scale: &Scale, row: &Row, top: i32) -> Result {
    let style = ("sans-serif", 13).into_font().color(&TEXT);
    area.draw(&Text::new(row.group().1.to_string(), (4, top + 2), style))?;
    let ends = vec![(MARGIN / 2, top + 28), (scale.width - MARGIN / 2, top + 28)];
    area.draw(&PathElement::new(ends, GRID))?;
    // Ours last, so that it lies above the others.
    for (kernel, cell) in row.cells.iter().enumerate().rev() {
        let y = top + 28;
        if let Some((least, most)) = cell
            .range()
            .filter(|range| 0.0 < range.0 && range.0 < range.1)
        {
            let y = y + (kernel as i32 - 1) * 4;
            let ends = vec![(scale.x(least), y), (scale.x(most), y)];
            area.draw(&PathElement::new(ends, COLOURS[kernel].stroke_width(2)))?;
        }
        if let Some(value) = cell.median().filter(|value| *value > 0.0) {
            mark(area, kernel, (scale.x(value), y))?;
        }
    }
    Ok(())
}

/// Told apart by their shapes, too.
fn mark(area: &Area<'_>, kernel: usize, at: (i32, i32)) -> Result {
    let style = COLOURS[kernel].filled();
    match kernel {
        0 => area.draw(&Circle::new(at, 6, style))?,
        1 => area.draw(&Rectangle::new(
            [(at.0 - 5, at.1 - 5), (at.0 + 5, at.1 + 5)],
            style,
        ))?,
        _ => area.draw(&TriangleMarker::new(at, 7, style))?,
    }
    Ok(())
}

/// A number in few characters.
fn short(value: f64) -> String {
    let (value, prefix) = match value {
        1e9.. => (value / 1e9, " G"),
        1e6.. => (value / 1e6, " M"),
        1e3.. => (value / 1e3, " k"),
        _ => (value, ""),
    };
    // 3 * 0.1 isn't 0.3.
    let value = (value * 1e6).round() / 1e6;
    format!("{value}{prefix}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::made_up;

    #[test]
    fn has_a_mark_for_each_figure() {
        let rows = made_up::rows();
        let rows: Vec<_> = rows
            .iter()
            .filter(|row| row.group().0 == "round trip")
            .collect();
        let svg = svg(&rows, 420).unwrap();
        // One in the legend, two of the loads.
        assert_eq!(svg.matches("<circle ").count(), 3);
        assert_eq!(svg.matches("<polygon ").count(), 3);
        assert!(svg.contains("4 KiB"));
    }

    #[test]
    fn draws_growth_as_curves() {
        let rows = made_up::rows();
        let rows: Vec<_> = rows
            .iter()
            .filter(|row| row.group().0 == "growth: send")
            .collect();
        let svg = svg(&rows, 420).unwrap();
        // One for each kernel, one of which is in the legend only by its mark.
        assert_eq!(svg.matches("stroke-width=\"2\"").count(), 3);
        assert_eq!(svg.matches("<circle ").count(), 3);
        assert!(height(1.0) == LEGEND_HEIGHT && height(0.0) > height(0.5));
    }

    #[test]
    fn has_short_numbers() {
        for (value, text) in [
            (3.0 * 0.1, "0.3"),
            (1.5, "1.5"),
            (200.0, "200"),
            (1.4 * 10f64.powi(5), "140 k"),
            (2.5e6, "2.5 M"),
        ] {
            assert_eq!(short(value), text);
        }
    }

    #[test]
    fn puts_what_costs_less_to_the_left() {
        let scale = Scale {
            least: 1.0,
            most: 100.0,
            width: 420,
        };
        assert_eq!(scale.x(1.0), MARGIN);
        assert_eq!(scale.x(10.0), 210);
        assert_eq!(scale.x(100.0), 420 - MARGIN);
        assert!(scale.ticks().len() <= 6);
    }
}
