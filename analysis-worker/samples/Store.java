package org.example.store;

import java.util.List;
import java.util.concurrent.*;
import static java.lang.Math.max;

/**
 * Keeps items.
 *
 * More are refused.
 */
@Deprecated
public class Store<T extends Item> extends Base implements Keeper<T>, AutoCloseable {
    public static final int LIMIT = 8;
    private List<T> items, others;

    // Opens it.
    public Store(String path) {
        super(path);
        this.items = new CopyOnWriteArrayList<>();
    }

    @Override
    @SuppressWarnings("unchecked")
    public boolean keep(T item) throws Refused {
        Runnable run = () -> { int x = max(1, 2); };
        return items.add(item);
    }

    enum State { OPEN, CLOSED { void shut() {} } }

    record Point(int x, int y) {
        Point {
            check(x);
        }
    }

    interface Keeper<T> { boolean keep(T item); int MAX = 1; }

    @interface Kept { String value() default ""; }
}
