#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace evaluation {

/// Text as XML and HTML take it between tags and in attributes.
std::string escaped(std::string_view text);

/// Where numbers lie along an axis of a picture, linearly or by their logarithms.
struct Scale {
  double low = 0, high = 1;  ///< the numbers at the ends
  double from = 0, to = 1;   ///< where in the picture they lie
  bool logarithmic = false;

  /// Numbers beyond the ends lie at the ends.
  double at(double number) const;
};

/// Round numbers in [low, high], `most` at most: 0, 5, 10, … or 0, 0.2, 0.4, …
std::vector<double> round_numbers(double low, double high, std::size_t most);

/// A number without needless digits: 0.25, 4, 0.001.
std::string brief(double number);

/// A picture in SVG that grows from back to front. Classes are those of plot_style().
class Svg {
 public:
  Svg(double width, double height, std::string_view description);

  void line(double x1, double y1, double x2, double y2, std::string_view kind);
  void polyline(const std::vector<std::pair<double, double>>& points, std::string_view kind);
  /// `anchor`: start, middle or end.
  void text(double x, double y, std::string_view anchor, std::string_view kind, std::string_view words);
  /// Text that reads upwards, its middle at (x, y).
  void upright_text(double x, double y, std::string_view kind, std::string_view words);
  /// One of MarkerShapes shapes; `hint` is what a browser shows when the mouse rests on it.
  void marker(double x, double y, std::size_t shape, std::string_view kind, std::string_view hint);
  void add(std::string_view element) { body_ += element; }

  /// The element, complete; `style`: CSS that goes into it, empty where the page around it has that.
  std::string finish(std::string_view style = "") const;

  static constexpr std::size_t MarkerShapes = 7;

 private:
  std::string head_, body_;
};

/// CSS of pictures: colours for light and dark surroundings, and the classes.
std::string plot_style();

}  // namespace evaluation
