#include <vector>
#include "store.hpp"

namespace kept::deep {

/// Keeps items.
template <typename T>
class Store final : public Base<T> {
public:
    explicit Store(std::string path);
    virtual ~Store() = default;
    bool keep(T item) override { return items_.push_back(item), true; }
    bool operator==(const Store &other) const;
    enum class State { Open, Closed };
    using Item = T;

private:
    std::vector<T> items_;
    static constexpr int kLimit = 8;
};

struct Point { int x, y; };

template <> struct Hash<Point> {
    int operator()(const Point &p) const { return p.x; }
};

} // namespace kept::deep

// Opens it.
template <typename T>
kept::deep::Store<T>::Store(std::string path) : Base<T>(path) {
    auto f = [](int x) { return x; };
    std::sort<int>(path.begin(), make<T>());
}

class EXPORT Marked {
    int x;
};

std::string &name() { static std::string n; return n; }
concept_t later = name();
